"""Damage to what opening an artifact does not look at: reported by `--verify`, and before a step uses it."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import zipfile
from pathlib import Path

import pytest

from smc.cli.main import run
from smc.errors import InputError
from smc.runtime import load
from smc.runtime.binding import Engine
from smc.runtime.integrity import verify_artifact
from tests.runtime.conftest import manifest_for, write_artifact
from tests.runtime.engine.conftest import WEIGHTS, compile_fake_program
from tests.runtime.engine.conftest import write_artifact as write_fake_artifact
from tests.runtime.engine.fake_model import Reference, expected, feed, tokens_of

PROGRAM = b"\x7fELF program"


def member_range(path: Path, name: str) -> range:
    """Where a member's bytes lie in the file."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
    header = path.read_bytes()[member.header_offset : member.header_offset + 30]
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    begin = member.header_offset + 30 + name_bytes + extra_bytes
    return range(begin, begin + member.file_size)


def damage(path: Path, places: range, count: int, out: Path) -> Path:
    """A copy with `count` bytes changed."""
    data, chooser = bytearray(path.read_bytes()), random.Random(count)
    for place in chooser.sample(places, min(count, len(places))):
        data[place] ^= chooser.randrange(1, 256)
    out.write_bytes(data)
    return out


def test_a_sound_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]):
    with zipfile.ZipFile(artifact) as archive:
        sizes = [member.file_size for member in archive.infolist()]
    seen: list[int] = []
    verified = verify_artifact(artifact, seen.append)
    assert (verified.members, verified.bytes, sum(seen)) == (5, sum(sizes), sum(sizes))
    assert run(["inspect", str(artifact), "--verify"]) == 0
    assert "all 5 members" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["weights", "program.so", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("count", [1, 2000])
def test_every_member_is_verified(
    artifact: Path, tmp_path: Path, name: str, count: int, capsys: pytest.CaptureFixture[str]
):
    damaged = damage(artifact, member_range(artifact, name), count, tmp_path / "damaged.smc")
    with pytest.raises(InputError, match=f"its checksums do not fit {name}; copy or compile it again"):
        verify_artifact(damaged)
    assert run(["inspect", str(damaged), "--verify", "--json"]) == 2
    output = capsys.readouterr()
    assert (output.out, name in output.err) == ("", True)


def test_all_that_is_damaged_is_named(artifact: Path, tmp_path: Path):
    damaged = damage(artifact, member_range(artifact, "weights"), 3, tmp_path / "once.smc")
    damaged = damage(damaged, member_range(artifact, "tokenizer.json"), 3, tmp_path / "twice.smc")
    with pytest.raises(InputError, match=r"do not fit weights, tokenizer\.json;"):
        verify_artifact(damaged)


def test_the_manifest_has_the_last_word(tmp_path: Path):
    """Another model's weights, with a checksum that is right, and an executable in front that was changed."""
    front = b"\x7fELF" + bytes(60)
    executable = {"sha256": hashlib.sha256(front).hexdigest(), "bytes": len(front)}
    manifest = json.dumps(manifest_for(PROGRAM, executable=executable))
    members: dict[str, bytes | str] = {"weights": bytes(64), "manifest.json": manifest, "program.so": PROGRAM}

    def behind(begin: bytes, members: dict[str, bytes | str]) -> Path:
        path = tmp_path / "model"
        path.write_bytes(begin)
        with zipfile.ZipFile(path, "a") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    assert verify_artifact(behind(front, members)).members == 3
    with pytest.raises(InputError, match="do not fit the executable in front;"):
        verify_artifact(behind(front[:-1] + b"x", members))
    with pytest.raises(InputError, match="do not fit weights;"):
        verify_artifact(behind(front, {**members, "weights": bytes(63) + b"x"}))
    del members["weights"]
    with pytest.raises(InputError, match="do not fit weights, the executable in front;"):
        verify_artifact(write_artifact(tmp_path / "less.smc", members))


def test_a_checkpoint_has_no_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["inspect", str(tmp_path), "--verify"]) == 2
    assert "--verify compares an artifact" in capsys.readouterr().err


# ---- the engine


@pytest.mark.parametrize("count", [1, 64])
def test_no_step_runs_on_damaged_weights(
    artifact: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
):
    """It wrote garbage and exited with 0."""
    damaged = damage(artifact, member_range(artifact, "weights"), count, tmp_path / "damaged.smc")
    with load(damaged, threads=1) as model:
        for _ in range(2):
            with pytest.raises(InputError, match="the artifact's weights are damaged"):
                model.logits([20, 30])
    assert run(["run", str(damaged), "--raw", "Hello", "-n", "3"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("huge_pages", "threads"), [("0", 1), ("1", 1), ("1", 2)])
def test_weights_are_checked_mapped_or_copied(
    tmp_path: Path, huge_pages: str, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SMC_HUGE_PAGES", huge_pages)
    size = (9 << 20) + 12_345
    program = compile_fake_program(tmp_path / "program.so", f"-DFAKE_WEIGHT_BYTES={size}").read_bytes()
    sound = write_fake_artifact(tmp_path / "sound.smc", WEIGHTS + random.Random(1).randbytes(size - len(WEIGHTS)))
    tokens = tokens_of(5)
    with Engine(sound, program, threads=threads) as engine:
        assert (feed(engine, [(engine.sequence_create(), tokens)]) == expected(Reference(), tokens)).all()
    places = member_range(sound, "weights")
    for place in (places[0], places[size // 2], places[-1]):
        damaged = damage(sound, range(place, place + 1), 1, tmp_path / "damaged.smc")
        with (
            pytest.raises(InputError, match="the artifact's weights are damaged"),
            Engine(damaged, program, threads=threads) as engine,
        ):
            feed(engine, [(engine.sequence_create(), tokens)])
