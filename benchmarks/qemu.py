"""Instructions that a 64-bit ARM program executes, counted exactly under qemu's user emulation.

    python -m benchmarks.qemu            build qemu-aarch64 with plugins and our counting plugin; prints the folder

Debian's qemu-user packages come without plugins, so this builds one from Debian's source package (ten minutes on one
core) under benchmarks/build/qemu/, where it stays. It needs Debian or Ubuntu, a C compiler, and the packages that an
error message names.
"""

from __future__ import annotations

import bisect
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

PLUGIN_SOURCE = Path(__file__).with_name("qemu_count.c")
BUILD = Path(__file__).parent / "build" / "qemu"
EMULATOR = BUILD / "build" / "qemu-aarch64"
PLUGIN = BUILD / "libqemu_count.so"

PACKAGES = ("libglib2.0-dev", "meson", "ninja-build", "pkg-config", "dpkg-dev", "gcc", "python3")
"""What building takes, by Debian's names."""


@dataclass(frozen=True)
class Profile:
    """Blocks of a program, (address, instructions) each, and how often they ran."""

    blocks: Mapping[tuple[int, int], int]

    @property
    def instructions(self) -> int:
        """All instructions that were executed."""
        return sum(length * executions for (_, length), executions in self.blocks.items())

    def __sub__(self, other: Profile) -> Profile:
        """What this run executed and the other one did not; counts may be negative."""
        difference = Counter(self.blocks)
        difference.subtract(other.blocks)
        return Profile({block: count for block, count in difference.items() if count})

    def by_symbol(self, symbols: Symbols) -> Counter[str]:
        """Instructions of each function."""
        instructions: Counter[str] = Counter()
        for (address, length), executions in self.blocks.items():
            instructions[symbols.at(address)] += length * executions
        return instructions

    def executions(self) -> Counter[int]:
        """How often the instruction at each address ran."""
        executions: Counter[int] = Counter()
        for (address, length), count in self.blocks.items():
            for place in range(length):
                executions[address + 4 * place] += count  # every ARM64 instruction has 4 bytes
        return executions


class Symbols:
    """The functions of an ELF program that is not position-independent, by address."""

    def __init__(self, functions: Sequence[tuple[int, str]]) -> None:
        """functions: (first address, name), in any order."""
        self._functions = sorted(functions)
        self._addresses = [address for address, _ in self._functions]

    @classmethod
    def of(cls, program: Path, *, demangle: bool = True) -> Symbols:
        """Read by `nm`; demangle: names of C++ as in its source."""
        options = ["--defined-only", *(["--demangle"] if demangle else [])]
        lines = run(["nm", *options, str(program)]).splitlines()
        return cls([(int(line[:16], 16), line[19:]) for line in lines if line[17] in "tTwW" and line[19:21] != "$x"])

    def at(self, address: int) -> str:
        """The function that holds an address."""
        place = bisect.bisect_right(self._addresses, address) - 1
        return self._functions[place][1] if place >= 0 else "?"


def parse_counts(text: str) -> Profile:
    """A profile from what the plugin wrote; ValueError if the program had a second thread."""
    first, *lines = text.splitlines()
    if first != "threads 1":
        raise ValueError(f"the program ran with {first}: counts are of programs with one")
    blocks: Counter[tuple[int, int]] = Counter()
    for line in lines:
        address, length, executions = line.split()
        blocks[int(address, 16), int(length)] += int(executions)
    return Profile(blocks)


def profile(command: Sequence[str], cpu: str) -> tuple[Profile, str]:
    """Run a static ARM64 program with one thread on an emulated CPU (qemu's name); its profile and its whole output."""
    build()
    with tempfile.NamedTemporaryFile(mode="r", suffix=".counts") as counts:
        output = run([str(EMULATOR), "-cpu", cpu, "-plugin", f"{PLUGIN},out={counts.name}", *command])
        return parse_counts(counts.read()), output


def run(command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a command; what it prints on both streams. Ends this program, with that, if it fails."""
    done = subprocess.run(
        command, check=False, text=True, cwd=folder, env=os.environ | dict(environment or {}), errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"this command failed: {' '.join(command)}\n{done.stdout[-3000:]}")
    return done.stdout


def build() -> Path:
    """Build emulator and plugin unless that was done before; the folder they are in."""
    if not EMULATOR.is_file():
        source = _source()
        EMULATOR.parent.mkdir(exist_ok=True)
        options = ["--target-list=aarch64-linux-user", "--enable-plugins", "--without-default-features"]
        options += ["--disable-system", "--disable-tools", "--disable-docs", "--disable-werror"]
        run([str(source / "configure"), *options], EMULATOR.parent)
        run(["nice", "ninja", EMULATOR.name], EMULATOR.parent)
    if not PLUGIN.is_file() or PLUGIN.stat().st_mtime < PLUGIN_SOURCE.stat().st_mtime:
        include = _source() / "include" / "qemu"
        flags = ["-O2", "-Wall", "-Wextra", "-fPIC", "-shared", f"-I{include}"]
        run(["cc", *flags, str(PLUGIN_SOURCE), "-o", str(PLUGIN)])
    return BUILD


def _source() -> Path:
    """The source of the distribution's qemu, with its patches."""
    found = next(BUILD.glob("qemu-*/"), None)
    if found is not None:
        return found
    missing = [tool for tool in ("apt-get", "dpkg-source", "meson", "ninja", "pkg-config") if not shutil.which(tool)]
    if not missing and subprocess.run(["pkg-config", "gmodule-2.0"], check=False).returncode:
        missing = ["glib"]
    if missing:
        raise SystemExit(f"{', '.join(missing)} missing; on Debian: apt-get install {' '.join(PACKAGES)}")
    lists = BUILD / "apt"  # the machine's own package lists stay as they are
    (lists / "state" / "partial").mkdir(parents=True, exist_ok=True)
    (lists / "sources.list").write_text(_source_entries(), encoding="utf-8")
    settings = lists / "apt.conf"
    settings.write_text(
        f'Dir::Etc::SourceList "{lists}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{lists}/state/";\n',
        encoding="utf-8",
    )
    run(["apt-get", "update"], environment={"APT_CONFIG": str(settings)})
    run(["apt-get", "source", "--only-source", "qemu"], BUILD, {"APT_CONFIG": str(settings)})
    return next(BUILD.glob("qemu-*/"))


def _source_entries() -> str:
    """Entries for source packages of the distribution's own archives, from which apt installs on this machine."""
    fields = "$(ORIGIN) $(REPO_URI) $(CODENAME) $(COMPONENT)"
    entries = []
    for line in run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]).splitlines():
        origin, address, release, component = line.split()
        if origin in ("Debian", "Ubuntu"):
            keyring = f"/usr/share/keyrings/{origin.lower()}-archive-keyring.gpg"
            entries.append(f"deb-src [signed-by={keyring}] {address} {release} {component}\n")
    return "".join(entries)


@click.command(help=__doc__)
def main() -> None:
    """Build and print the folder."""
    click.echo(build())


if __name__ == "__main__":
    main()
