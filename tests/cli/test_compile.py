"""`smc compile`: what it refuses before work starts, and that nothing half-written is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.cli import compile as command
from smc.cli import main
from smc.codegen import CompileOptions
from smc.errors import InputError
from smc.ir import Module

ROOT = Path(__file__).parent.parent.parent
MakeCheckpoint = Callable[..., tuple[Path, Any]]
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_exists_and_is_no_artifact_needs_force(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = make_checkpoint()
    compiling = ["compile", str(folder), "--quant", "f32", "-o"]
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("photo", b"1")
    Path("notes.txt").write_text("mine")
    for name in ("notes.txt", "photos.zip"):
        before = Path(name).read_bytes()
        assert main.run([*compiling, name]) == 2
        assert f"the output {name} exists and is not an artifact" in capsys.readouterr().err
        assert Path(name).read_bytes() == before
    assert main.run([*compiling, "notes.txt", "--force"]) == 0
    assert main.run([*compiling, "notes.txt", "-q"]) == 0, "an artifact may be replaced"
    Path("empty").touch()
    assert main.run([*compiling, "empty", "-q"]) == 0
    assert zipfile.is_zipfile("empty")


def test_quiet_says_nothing_and_verbose_more(
    make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = make_checkpoint()
    compiling = ["compile", str(folder), "--quant", "f32", "-o", "out.smc"]
    capsys.readouterr()
    assert main.run([*compiling, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main.run([*compiling, "-v"]) == 0
    said = capsys.readouterr().err
    assert "made from: convert:dtype=f32" in said and "target: x86-64, levels " in said
    assert main.run(["compile", "./nothing", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main.run(["compile", "./nothing", "-q"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_disk_is_asked_for_little_more_than_it_gets(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_checkpoint()
    module = smc.apply(smc.load_checkpoint(folder), ["convert:dtype=f32"])
    size = smc.compile(module, out=tmp_path / "out.smc").bytes
    asked = [n for n in range(1 << 20, 8 << 20, 1 << 18) if refuses(module, tmp_path, n, monkeypatch)]
    assert size < max(asked) < size + (5 << 20)


def refuses(module: Module, folder: Path, free: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(free, 0, free))
    try:
        command._check_space(folder / "out.smc", module, standalone=False)
    except InputError:
        return True
    return False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "x86_64"], "did you mean 'x86-64'?"),
        (["--quant", "int44"], "did you mean int4?"),
        (["-p", "quantise-rtn"], "did you mean quantize-rtn?"),
        (["-p", "quantize-rtn:bitz=4"], "did you mean bits?"),
        (["-p", "quantize-rtn:bits=four"], "option bits of pass quantize-rtn takes"),
        (["-p", "./nowhere.py:mine"], "there is no file nowhere.py"),
        (["--recipe", "mine.yaml"], "there is no recipe file mine.yaml"),
        (["--recipe", "int4"], "use --quant"),
        (["--quant", "int4", "--recipe", "mine.yaml"], "give one of them"),
        (["--bits", "4.7", "--quant", "int4"], "--bits and --quant both choose the size of the model"),
        (["--bits", "4.7", "--recipe", "mine.yaml"], "--bits and --recipe both choose the size of the model"),
        (["--calib", "nothing.txt"], "there is no calibration text nothing.txt"),
        (
            ["--emit", "c,ll", "listing"],
            "--emit takes plan, schedule, c, tir, asm, obj, cu, ptx, sass, separated by commas, not 'll'",
        ),
        (["--without", "chains,tails"], "--without takes chains, private, joins, tail, argmax, prefetch"),
        (["-o", "."], "is a folder"),
        (["-o", "nowhere/x.smc"], "there is no folder nowhere"),
        ([], "nothing-here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["compile", "./nothing-here", *arguments]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_output_over_the_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert main.run(["compile", "model.gguf", "-o", "./model.gguf"]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF"


def test_full_disk_is_told_before_the_work(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = make_checkpoint()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(100, 99, 1_000_000))
    monkeypatch.setattr(smc, "compile", lambda *_, **__: pytest.fail("work started"))
    assert main.run(["compile", str(folder), "-o", "out.smc"]) == 2
    assert "there is not enough disk space for out.smc" in capsys.readouterr().err.splitlines()[-1]


def test_interrupt_leaves_with_130(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    folder, _ = make_checkpoint()
    monkeypatch.setattr(smc, "compile", interrupted)
    assert main.run(["compile", str(folder), "-o", "out.smc"]) == 130


def test_fast_paths_are_left_out_by_name(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def interrupted(_module: Any, _out: Any, options: CompileOptions, *_: Any) -> None:
        given.append(options.without)
        raise KeyboardInterrupt

    monkeypatch.setattr("smc.codegen.compile_module", interrupted)
    folder, _ = make_checkpoint()
    assert main.run(["compile", str(folder), "-o", "out.smc", "--without", "chains,tail"]) == 130
    assert main.run(["compile", str(folder), "-o", "out.smc"]) == 130
    assert given == [("chains", "tail"), ()]


@pytest.mark.parametrize(
    ("name", "file"), [("SmolLM2-135M", "SmolLM2-135M"), ("org/name v1", "org-name-v1"), ("../..", "model")]
)
def test_file_name_of_a_model(name: str, file: str) -> None:
    assert command._file_name(name) == file


def test_tiny_model(make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make_checkpoint()
    before = set(tmp_path.iterdir())
    kinds = "plan,schedule,c,tir,asm,obj"
    assert main.run(["compile", str(folder), "--quant", "int8", "--emit", kinds, "listing", "--json"]) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    artifact = Path(summary["out"])
    assert "has no tokenizer that can be read" in shown.err.replace("\n", " ")
    assert set(tmp_path.iterdir()) - before == {tmp_path / artifact, tmp_path / "listing"}
    assert summary["bytes"] == artifact.stat().st_size
    assert summary["embedding"].startswith("int8.g32")
    assert summary["head"].startswith("int8.g32")
    assert summary["bits_per_weight"] == pytest.approx(8 * summary["weight_bytes"] / summary["weights"])
    assert summary["bits_per_weight"] > 8.5
    assert {"avx512vnni", "avxvnni", "avx2"} >= set(summary["levels"]) != set()
    assert {path.suffix for path in (tmp_path / "listing").iterdir()} == {".txt", ".c", ".py", ".s", ".o"}
    assert "block(x:f32) -> x:f32, in place, 2 calls" in (tmp_path / "listing" / "plan.txt").read_text()
    assert "block: 10 phases" in (tmp_path / "listing" / "schedule.txt").read_text()
    assert zipfile.is_zipfile(artifact)


def test_progress_moves_within_every_long_stage(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder, _ = make_checkpoint()
    told: dict[str, list[float]] = {}
    module = smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=8"])
    smc.compile(module, out=tmp_path / "out.smc", progress=lambda stage, done: told.setdefault(stage, []).append(done))
    for stage in ("write weights", "link"):
        assert told[stage] == sorted(told[stage])
        assert told[stage][0] == 0 and told[stage][-1] == 1
        assert any(0 < fraction < 1 for fraction in told[stage])


def ended_by(number: signal.Signals, folder: Path, tmp_path: Path) -> tuple[int, str]:
    """Compile with an empty cache, and send a signal while kernels are built. Exit status and what was said."""
    command = [sys.executable, "-m", "smc", "compile", str(folder), "-o", "out.smc"]
    environment = {**os.environ, "SMC_CACHE": str(tmp_path.parent / f"cold-{number}"), "PYTHONPATH": str(ROOT)}

    def heed_hangups() -> None:  # which a test run under nohup ignores
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed_hangups
    ) as process:
        while not list(tmp_path.glob(".out.smc.*/*.o")):  # the first kernel is there, others are being built
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.stderr is not None
        message = process.stderr.read()
    return process.returncode, message


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)]
)
def test_interrupted_process_leaves_nothing_behind(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder, _ = make_checkpoint()
    before = set(tmp_path.iterdir())
    code, message = ended_by(number, folder, tmp_path)
    assert code == status, message
    assert message.splitlines()[-1] == ("interrupted" if number == signal.SIGINT else "terminated")
    assert "Traceback" not in message
    assert set(tmp_path.iterdir()) == before


def test_what_a_killed_process_leaves_is_removed_by_the_next(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder, _ = make_checkpoint()
    before = set(tmp_path.iterdir())
    code, message = ended_by(signal.SIGKILL, folder, tmp_path)
    assert code == -signal.SIGKILL
    assert "Traceback" not in message, "of the workers, whose caller is gone"
    assert set(tmp_path.iterdir()) - before
    assert main.run(["compile", str(folder), "-o", "out.smc"]) == 0
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out.smc"}


@pytest.mark.parametrize("arguments", [["-o", "{}/config.json"], ["-o", "link"], ["-o", "/dev/null"], []])
def test_python_checks_the_output_too(make_checkpoint: MakeCheckpoint, tmp_path: Path, arguments: list[str]) -> None:
    """What belongs to the checkpoint stays, through a link as well, and a device stays a device."""
    folder, _ = make_checkpoint()
    (tmp_path / "link").symlink_to(folder / "model.safetensors")
    out = Path(arguments[1].format(folder)) if arguments else folder / "model.safetensors"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    module = smc.load_checkpoint(folder)
    with pytest.raises(smc.InputError, match=r"is the model itself or a part of its input|is not a regular file"):
        smc.compile(module, "native", out)
    assert main.run(["compile", str(folder), "-o", str(out)]) == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert Path("/dev/null").is_char_device()


def test_an_output_may_lie_in_the_checkpoints_folder(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Twice: an artifact is nothing that the checkpoint needs."""
    folder, _ = make_checkpoint()
    module = smc.apply(smc.load_checkpoint(folder), ["convert:dtype=f16"])
    for _ in range(2):
        smc.compile(module, "native", folder / "model")
    assert zipfile.is_zipfile(folder / "model")


def test_a_link_is_written_through(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder, _ = make_checkpoint()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.smc").symlink_to("elsewhere/real.smc")
    assert main.run(["compile", str(folder), "-o", "link.smc"]) == 0
    assert (tmp_path / "link.smc").is_symlink()
    assert zipfile.is_zipfile(tmp_path / "elsewhere" / "real.smc")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real.smc"]
