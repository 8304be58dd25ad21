"""Output paths: what may be written, the folder that is worked in, and who may work there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smc.codegen.output import output_file, output_folder, work_folder
from smc.errors import InputError


def test_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "dangling").symlink_to("new")
    assert output_file(tmp_path / "old") == tmp_path / "old"
    assert output_file(tmp_path / "link") == tmp_path / "old"
    assert output_file(tmp_path / "dangling") == tmp_path / "new"


def test_what_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "old").write_text("x")
    (tmp_path / "old").chmod(0o444)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-null").symlink_to("/dev/null")
    for name, sentence in [
        ("old", "is read-only"),
        ("pipe", "is not a regular file"),
        ("to-null", "is not a regular file"),
        ("loop", "can't be written"),
        ("n" * 256, "can't be written: File name too long"),
        ("gone/x", "there is no folder"),
        ("file/x", "there is no folder"),
        (".", "is a folder"),
    ]:
        with pytest.raises(InputError, match=sentence):
            output_file(tmp_path / name)


def test_inputs_are_kept(tmp_path: Path) -> None:
    """Files, whatever they are called, and what is in folders."""
    model = tmp_path / "model"
    model.mkdir()
    for path in (model / "vocab.txt", tmp_path / "calibration"):
        path.write_text("x")
    os.link(tmp_path / "calibration", tmp_path / "same")
    for path in (model / "vocab.txt", tmp_path / "calibration", tmp_path / "same"):
        with pytest.raises(InputError, match="is the model itself or a part of its input"):
            output_file(path, [model, tmp_path / "calibration", tmp_path / "not there"])
    assert output_file(model / "new", [model])


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    below = "is not a folder"
    for name, sentence in [("file", below), ("file/below", below), ("n" * 256, "File name too long")]:
        with pytest.raises(InputError, match=sentence):
            output_folder(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_work_folder_has_one_owner_and_goes(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out") as folder:
        (folder / "half").mkdir()
        (folder / "half" / "done").write_text("x")
        assert folder.parent == tmp_path
        with pytest.raises(InputError, match="is being written by another process"), work_folder(tmp_path / "out"):
            pass
        with work_folder(tmp_path / "other") as other:
            assert other != folder
        assert (folder / "half" / "done").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, os.fsdecode(b"\xff\xfe")])
def test_work_folders_of_long_and_odd_names(tmp_path: Path, name: str) -> None:
    with work_folder(output_file(tmp_path / name)) as folder:
        (folder / "x").write_text("x")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from smc.codegen.output import work_folder\n"
        "with work_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').mkdir(); (folder / 'half' / 'x').write_text('x'); (folder / 'file').write_text('x')\n"
        "    print(folder, flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with pytest.raises(InputError, match="is being written by another process"), work_folder(tmp_path / "out"):
            pass
        process.send_signal(signal.SIGKILL)
    assert (left / "half" / "x").exists()
    with work_folder(tmp_path / "out") as folder:
        assert folder == left
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    """Somebody who can write beside the output must not choose what is swept."""
    with work_folder(tmp_path / "out") as folder:
        pass
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    folder.symlink_to("precious")
    with pytest.raises(OSError), work_folder(tmp_path / "out"):  # noqa: PT011 - ELOOP or ENOTDIR
        pass
    assert (tmp_path / "precious" / "x").exists()
