"""A real model's executable under AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer: engine, tokenizer,
command line and the generated host program, around the kernels as they are. Whatever it is given, it ends by itself."""

from __future__ import annotations

import os
import random
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import smc
from benchmarks.models import glassllm
from smc.cli.run import run
from smc.codegen import assembly
from smc.codegen.cpu.link import engine_folder, standalone_folder
from smc.passes import load_recipe
from smc.targets import Target
from tests.runtime.engine.conftest import compile_c, supports
from tests.standalone.chat_templates import VICUNA
from tests.standalone.conftest import Executable

pytestmark = pytest.mark.slow

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FOUND = 99
"""The exit status where a sanitizer found something."""

SAMPLING = (
    "--temperature",
    "1.2",
    "--top-k",
    "20",
    "--top-p",
    "0.95",
    "--min-p",
    "0.01",
    "--repetition-penalty",
    "1.2",
)
USES: list[tuple[list[str], bytes]] = [
    (["--raw", "Once upon a time", "-n", "30"], b""),
    (["Who are you?", "--system", "  \n", "-n", "12", "--kv-dtype", "f32", "--threads", "3"], b""),
    (["--raw", "-n", "40", "--seed", "3", *SAMPLING], "The “old man” \u3000 said 12345   </s>\n\0é".encode()),
    (["--raw", "x", "-n", "30", "--json", "--stats", "--stop", "e", "--stop", "the very"], b""),
    (["--raw", "x" * 60, "--ctx", "70"], b""),
    (["--chat", "-n", "20"], b"hello\n\n  \nwho are you?\n/reset\nA: USER: <|im_end|>\n/exit\n"),
    (["--chat", "-n", "40", "--ctx", "100"], b"tell me more, please\n" * 6),
    (["--bench", "--prompt-tokens", "20", "--decode-tokens", "5", "--repeat", "2", "--json"], b""),
    (["--info"], b""),
    (["--info", "--json"], b""),
    (["--help"], b""),
]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executable]:
    folder = tmp_path_factory.mktemp("sanitized")
    if not supports("address,undefined", folder):
        pytest.skip("no gcc with -fsanitize=address,undefined")

    folders = (engine_folder(), standalone_folder())
    flags = [*SANITIZE, *(f"-I{folder}" for folder in folders)]
    files = [path for folder in (*folders, engine_folder() / "cpu") for path in sorted(folder.glob("*.c"))]
    ours = [compile_c(folder / f"{path.stem}.o", [path], "-c", *flags) for path in files]

    def link(sources: Sequence[Path], objects: Sequence[Path], target: Target, out: Path, _: object) -> None:
        compile_c(out, [*sources, *ours, *objects], *flags)

    glassllm(folder / "glassllm")
    module = smc.apply(smc.load_checkpoint(folder / "glassllm"), load_recipe("int4").passes)
    module = replace(module, facts=replace(module.facts, chat_template=VICUNA, special_tokens={"eos_token": "</s>"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "link_standalone", link)
        smc.compile(module, target="native", out=folder / "model", standalone=True)
        patch.setenv("ASAN_OPTIONS", f"exitcode={FOUND}")
        patch.setenv("UBSAN_OPTIONS", "print_stacktrace=1")
        yield Executable(folder / "model")


def ends_by_itself(done: subprocess.CompletedProcess[bytes]) -> int:
    """Its exit status, 0 or, with one sentence, 2."""
    assert done.returncode in (0, 2), done.stderr.decode(errors="replace")[-4000:]
    if done.returncode == 2:
        assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1, done.stderr
    return done.returncode


@pytest.mark.parametrize(("arguments", "stdin"), USES)
def test_ordinary_use(sanitized: Executable, arguments: list[str], stdin: bytes) -> None:
    assert ends_by_itself(sanitized.run(*arguments, stdin=stdin)) == 0


@pytest.mark.parametrize("prompt", ["The Queen of Hearts", "é\u3000 12 'tis"])
def test_the_text_is_that_of_smc_run(sanitized: Executable, prompt: str) -> None:
    for arguments in (
        ["--raw", prompt, "-n", "40"],
        [prompt, "-n", "40"],
        [prompt, "-n", "40", "--seed", "5", *SAMPLING],
    ):
        expected = CliRunner().invoke(run, [str(sanitized.path), *arguments], catch_exceptions=False).stdout
        assert sanitized.text(*arguments) == expected


VALUES = [
    *("", "0", "1", "-1", "3.5", "nan", "inf", "1e999", "2147483648", "99999999999999999999"),
    *("x", "f32", "avx2", "\udcff", "é"),
]
SWITCHES = [
    "--raw",
    "--json",
    "--stats",
    "--chat",
    "--bench",
    "--info",
    "--",
    "-",
    "-h",
    "-x",
    "--no",
    "--raw=1",
    "a b",
]
OPTIONS = [
    *("-n", "-t", "--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty", "--seed"),
    *("--stop", "--ctx", "--threads", "--kv-dtype", "--level", "--system"),
    *("--prompt-tokens", "--decode-tokens", "--depth", "--repeat"),
]


def test_any_command_line(sanitized: Executable) -> None:
    chooser = random.Random(1)
    statuses = []
    for _ in range(250):
        # Counts come small first, so that nothing runs for long.
        words = ["-n", "5", "--prompt-tokens", "5", "--decode-tokens", "5", "--repeat", "1", "--threads", "2"]
        for _ in range(chooser.randrange(1, 5)):
            if chooser.random() < 0.6:
                words += [chooser.choice(OPTIONS), chooser.choice(VALUES)]
            else:
                words.append(chooser.choice(SWITCHES))
        statuses.append(ends_by_itself(sanitized.run(*words, stdin=b"hello")))
    assert {0, 2} == set(statuses)


def regions(path: Path) -> dict[str, tuple[int, int]]:
    """Where the parts lie that the executable reads."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        found = {"directory": (archive.start_dir, len(content))}
        for member in archive.infolist():
            name, extra = (
                content[member.header_offset + 26],
                content[member.header_offset + 28 : member.header_offset + 30],
            )
            begin = member.header_offset + 30 + name + int.from_bytes(extra, "little")
            found[member.filename] = begin, begin + member.file_size
    return found


DAMAGE: dict[str, Callable[[random.Random, int], int]] = {
    "flip a bit": lambda chooser, byte: byte ^ 1 << chooser.randrange(8),
    "extreme": lambda chooser, byte: chooser.choice([0, 1, 0x7F, 0x80, 0xFF]),
    "any": lambda chooser, byte: chooser.randrange(256),
}


def with_checksums(path: Path, content: bytearray) -> bytearray:
    """The content with every member's CRC-32 set right in the directory: who damages a file on purpose does so too."""
    with zipfile.ZipFile(path) as archive:
        place, members = archive.start_dir, archive.infolist()
    for member in members:
        begin, end = regions(path)[member.filename]
        content[place + 16 : place + 20] = zlib.crc32(content[begin:end]).to_bytes(4, "little")
        place += 46 + sum(int.from_bytes(content[place + at : place + at + 2], "little") for at in (28, 30, 32))
    return content


@pytest.mark.parametrize("checksums", ["wrong", "right"])
@pytest.mark.parametrize("part", ["directory", "tokenizer.tables", "chat_template.pieces", "weights"])
def test_damaged_files(sanitized: Executable, tmp_path: Path, part: str, checksums: str) -> None:
    """With wrong checksums all is refused; else damaged weights make a bad text, and what can't be right is refused."""
    if part == "directory" and checksums == "right":
        pytest.skip("the directory has no checksum")
    chooser = random.Random(part)
    content = sanitized.path.read_bytes()
    begin, end = regions(sanitized.path)[part]
    damaged = sanitized.moved(tmp_path / "damaged")
    refused = same = 0
    for _ in range(60):
        changed = bytearray(content)
        last = min(end, begin + 400) if chooser.random() < 0.5 else end  # headers are where most can go wrong
        for _ in range(chooser.choice([1, 1, 2, 3, 8, 40])):
            place = chooser.randrange(begin, last)
            changed[place] = DAMAGE[chooser.choice(list(DAMAGE))](chooser, changed[place])
        same += changed == content
        damaged.path.write_bytes(with_checksums(sanitized.path, changed) if checksums == "right" else changed)
        damaged.path.chmod(0o755)
        arguments, stdin = chooser.choice(USES[:6])
        refused += ends_by_itself(damaged.run(*arguments, stdin=stdin)) == 2
        os.remove(damaged.path)  # the next one may not be written to while some system still runs this one
    if part != "directory" and checksums == "wrong":
        assert refused == 60 - same
    else:
        assert refused < 60
        assert refused > 0 or part == "weights"


def test_cut_files(sanitized: Executable, tmp_path: Path) -> None:
    content = sanitized.path.read_bytes()
    chooser = random.Random(7)
    front = min(begin for begin, _ in regions(sanitized.path).values())
    for _ in range(40):
        cut = sanitized.moved(tmp_path / "cut")
        cut.path.write_bytes(content[: chooser.randrange(front, len(content))])
        cut.path.chmod(0o755)
        assert ends_by_itself(cut.run("--raw", "x", "-n", "5")) == 2
        os.remove(cut.path)
