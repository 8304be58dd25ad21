"""The file that compiling writes: as docs/artifact.md says, the same bytes every time, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import smc
from smc.cli import main
from smc.codegen import assembly
from smc.codegen.artifact import ArtifactWriter
from smc.runtime.artifact import read_artifact

MakeCheckpoint = Callable[..., tuple[Path, Any]]
ROOT = Path(__file__).parents[2]
ALIGNMENT = 65536


def data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's data begin, by its local header."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra


# ---------------------------------------------------------------- the ZIP


NAMES_AND_BLOCKS = st.tuples(st.text("abc.", min_size=1, max_size=9), st.integers(0, 2))


@given(st.lists(NAMES_AND_BLOCKS, unique_by=lambda member: member[0]), st.data())
def test_any_members_are_aligned_and_stored(members: list[tuple[str, int]], data: st.DataObject) -> None:
    """Whatever stands before: also where the gap is too short for an extra field, or as long as one can be."""
    file = io.BytesIO()
    writer = ArtifactWriter(file)  # type: ignore[arg-type]
    written = {}
    for name, blocks in members:
        content = bytes([len(written)]) * max(0, blocks * ALIGNMENT - data.draw(st.integers(0, 200)))
        written[name] = content
        writer.add(name, content)
    writer.close()
    with zipfile.ZipFile(file) as archive:
        assert {info.filename: archive.read(info) for info in archive.infolist()} == written
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            header = file.getvalue()[info.header_offset :][:30]
            assert (info.header_offset + 30 + sum(header[26::2]) + 256 * sum(header[27::2])) % ALIGNMENT == 0


def test_members_beyond_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZIP64, without writing gigabytes: the limit is made small."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    writer = ArtifactWriter(tmp_path / "a.zip")
    assert writer.stream("weights", 5000, lambda file: file.write(bytes(5000))) == 5000
    writer.add("manifest.json", b"{}")
    writer.close()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert [data_offset(tmp_path / "a.zip", info) for info in archive.infolist()] == [ALIGNMENT, 2 * ALIGNMENT]


# ---------------------------------------------------------------- an artifact


@pytest.fixture
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(vocab_size=5000, tie_word_embeddings=True)[0]


def test_is_what_the_documentation_says(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.smc"
    module = smc.apply(smc.load_checkpoint(checkpoint), ["quantize-rtn:bits=8"])
    report = smc.compile(module, out=out, verify=True)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        members = {info.filename: info for info in archive.infolist()}
        assert all(info.compress_type == zipfile.ZIP_STORED for info in members.values())
        assert all(data_offset(out, info) % ALIGNMENT == 0 for info in members.values())
        assert sorted(members) == ["manifest.json", "program.so", "weights"]  # this checkpoint has no tokenizer
        manifest = json.loads(archive.read("manifest.json"))
        for name, member in (("weights", "weights"), ("program", "program.so")):
            content = archive.read(member)
            assert manifest[name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    table = (ROOT / "docs" / "artifact.md").read_text().partition("## `manifest.json`")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    keys = [*manifest, "executable", "quality"]  # of executables, of calibrated recipes
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(keys)
    assert manifest["parameters"] == module.weight_count()
    assert manifest["bits_per_weight"] == pytest.approx(8 * manifest["weights"]["bytes"] / module.weight_count())
    assert manifest["encodings"]["model.embed_tokens.weight"] == "int8.g32"
    assert manifest["shapes"]["model.embed_tokens.weight"] == [5000, 48]
    assert manifest["provenance"][-1].startswith("fuse-norm-residual")
    assert manifest["target"] == report.target
    assert [level["name"] for level in manifest["levels"]] == report.levels
    assert report.bytes == out.stat().st_size
    read_artifact(out)


def test_program_exports_one_symbol_and_needs_libc_only(checkpoint: Path, tmp_path: Path) -> None:
    smc.compile(smc.load_checkpoint(checkpoint), out=tmp_path / "out.smc")
    with zipfile.ZipFile(tmp_path / "out.smc") as archive:
        archive.extract("program.so", tmp_path)
    # zig has no nm or readelf: the dynamic symbols and libraries are read from the section headers.
    program = (tmp_path / "program.so").read_bytes()
    symbols, needed = dynamic_section(program)
    assert symbols == ["smc_engine"]
    assert {name.partition(".so")[0] for name in needed} <= {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64"}


def dynamic_section(elf: bytes) -> tuple[list[str], list[str]]:
    """The defined dynamic symbols and the needed libraries of an ELF64 little-endian library."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(elf[offset : offset + size], "little")

    table, entry, count = number(0x28, 8), number(0x3A, 2), number(0x3C, 2)
    sections = [table + i * entry for i in range(count)]
    by_type = {number(s + 4, 4): (number(s + 24, 8), number(s + 32, 8), number(s + 40, 4)) for s in sections}
    dynsym, dynamic = by_type[11], by_type[6]

    def text(strings: int, offset: int) -> str:
        begin = number(sections[strings] + 24, 8) + offset
        return elf[begin : elf.index(b"\0", begin)].decode()

    symbols = [
        text(dynsym[2], number(at, 4))
        for at in range(dynsym[0], dynsym[0] + dynsym[1], 24)
        if number(at + 6, 2) != 0 and number(at, 4) != 0
    ]
    needed = [
        text(dynamic[2], number(at + 8, 8))
        for at in range(dynamic[0], dynamic[0] + dynamic[1], 16)
        if number(at, 8) == 1
    ]
    return symbols, needed


def test_the_same_bytes_every_time(checkpoint: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("one.smc", "two.smc")]
    for seed, out in enumerate(outs):
        (folder := tmp_path / str(seed)).mkdir()
        command = [sys.executable, "-m", "smc", "compile", str(checkpoint), "--quant", "int4", "-o", str(out)]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


# ---------------------------------------------------------------- when it fails


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which the command line refuses."""
    assert main.run(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_a_broken_weight_in_the_middle_leaves_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    before = set(tmp_path.iterdir())
    sentence = refused(["compile", str(checkpoint), "--quant", "int8", "-o", str(tmp_path / "out.smc")], capsys)
    assert "model.layers.1.mlp.down_proj.weight" in sentence
    assert set(tmp_path.iterdir()) == before


def test_an_artifact_that_was_there_stays(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assembly, "link_program", full)
    out = tmp_path / "out.smc"
    out.write_bytes(b"older")
    before = set(tmp_path.iterdir())
    said = refused(["compile", str(checkpoint), "--quant", "int8", "--force", "-o", str(out)], capsys)
    assert f"disk space: {out}" in said
    assert out.read_bytes() == b"older"
    assert set(tmp_path.iterdir()) == before


def test_a_file_that_grows_too_large_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """A limit of the operating system stops the writing of the weights, as a full disk would."""
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "from smc.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    out = tmp_path / "out.smc"
    smc.compile(smc.load_checkpoint(checkpoint), out=out)  # kernels and engine are in the cache now
    out.unlink()
    before = set(tmp_path.iterdir())
    command = [sys.executable, "-c", script, "compile", str(checkpoint), "--quant", "f32", "-o", str(out)]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "out.smc" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert set(tmp_path.iterdir()) == before
