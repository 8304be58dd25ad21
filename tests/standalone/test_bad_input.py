"""What is wrong around an executable is one sentence: files, systems, memory, input and output."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.standalone.conftest import Executable

NOBODY = 65534
HELLO = ("--raw", "Hello", "-n", "9")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root folder or its user")


@pytest.fixture
def room() -> Iterator[Path]:
    """An empty folder that every user can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def copy(executable: Executable, room: Path) -> Executable:
    """A copy of the executable in that folder."""
    shutil.copy(executable.path, room / "model")
    return executable.moved(room / "model")


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    """The sentence of a program that refused its input."""
    assert done.returncode == 2, done
    assert done.stdout == b""
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    return done.stderr.decode()


# ---- the file and the system around it


def bring_emulator(copy: Executable, room: Path) -> list[str]:
    """The command that runs the copy where `room` is the root folder."""
    runner = list(copy.runner)
    if runner:
        shutil.copy(shutil.which(runner[0]) or "", room / "emulator")
        runner[0] = "/emulator"
    return runner


@needs_root
@pytest.mark.parametrize("name", ["/model", "./model", "//./model"])
def test_nothing_but_the_file_is_needed(copy: Executable, room: Path, name: str) -> None:
    """No /proc, no /sys, no /dev, no libraries; it finds itself by the name that it was started by."""
    expected = copy.text(*HELLO)
    command = [*bring_emulator(copy, room), name, *HELLO]
    done = subprocess.run(command, capture_output=True, preexec_fn=lambda: enter(room), check=False, timeout=60)
    assert (done.returncode, done.stdout.decode()) == (0, expected), done.stderr


def enter(room: Path) -> None:
    os.chroot(room)
    os.chdir("/")


@needs_root
def test_a_read_only_file_system(copy: Executable, room: Path) -> None:
    expected = copy.text(*HELLO)
    (room / "disk").mkdir()
    script = 'mount -t tmpfs disk disk && mv model disk && mount -o remount,ro disk && touch disk/x; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *copy.moved(room / "disk" / "model").command(*HELLO)]
    done = subprocess.run(command, capture_output=True, cwd=room, check=False, timeout=60)
    if b"unshare failed" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("this system forbids mounting")
    assert (done.returncode, done.stdout.decode()) == (0, expected)
    assert b"Read-only file system" in done.stderr  # of touch: the disk really is


@needs_root
def test_a_file_that_may_be_run_but_not_read(copy: Executable) -> None:
    copy.path.chmod(0o711)
    if copy.runner:
        pytest.skip("the emulator itself must read the file")
    assert "Permission denied" in told(copy.run(*HELLO, user=NOBODY, group=NOBODY, extra_groups=()))
    copy.path.chmod(0o755)
    assert copy.run(*HELLO, user=NOBODY, group=NOBODY, extra_groups=()).returncode == 0


def test_a_file_that_moves_while_it_runs(copy: Executable, room: Path) -> None:
    """It is opened after the prompt was read: by then it has another name, is another file, or has no name."""
    expected = copy.text(*HELLO)

    def move(path: Path) -> None:
        path.rename(room / "other")

    def replace(path: Path) -> None:
        (room / "new").write_bytes(b"another file")
        (room / "new").rename(path)

    def overwrite(path: Path) -> None:
        try:
            path.write_bytes(b"")  # most systems refuse this for programs that run
        except OSError:
            path.unlink()

    if copy.runner:
        pytest.skip("an emulator opens a program by its name again")
    for change in (move, replace, Path.unlink, overwrite):
        path = copy.path.with_name(change.__name__)
        shutil.copy(copy.path, path)
        process = subprocess.Popen(
            copy.moved(path).command("--raw", "-n", "9"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await_program(process.pid, path)
        change(path)
        assert process.communicate(b"Hello", timeout=60)[0].decode() == expected, change.__name__


def await_program(process: int, path: Path) -> None:
    """Until the process is this program, not the one that started it."""
    deadline = time.monotonic() + 30
    while os.readlink(f"/proc/{process}/exe") != str(path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_cut_is_told(copy: Executable, room: Path) -> None:
    """Behind the executable itself; of a shorter file the kernel says that it is none, or ends it."""
    content = copy.path.read_bytes()
    with zipfile.ZipFile(copy.path) as archive:
        members = archive.infolist()
        lengths = [archive.start_dir, len(content) - 1, len(content) - 22, len(content) // 2]
    for member in members:
        lengths += [member.header_offset, member.header_offset + 65536, member.header_offset + 65536 + member.file_size]
    cut = copy.moved(room / "cut")
    for length in sorted({*lengths} - {len(content)}):
        if length < len(content):
            cut.path.write_bytes(content[:length])
            cut.path.chmod(0o755)
            assert "incomplete" in told(cut.run(*HELLO))
    cut.path.write_bytes(content + b"\0")
    assert "copy or compile it again" in told(cut.run(*HELLO))


def test_verify(copy: Executable, room: Path) -> None:
    """Damage in any member is reported by --verify, and what a run uses, before it uses it."""
    assert copy.text("--verify").startswith("all 7 members, ")
    assert '"members": 7' in copy.text("--verify", "--json")
    content, damaged = copy.path.read_bytes(), copy.moved(room / "damaged")
    with zipfile.ZipFile(copy.path) as archive:
        members = archive.infolist()
    for member in members:
        name, extra = content[member.header_offset + 26], content[member.header_offset + 28 : member.header_offset + 30]
        place = member.header_offset + 30 + name + int.from_bytes(extra, "little") + member.file_size // 2
        damaged.path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        damaged.path.chmod(0o755)
        told_of = f"its checksums do not fit {member.filename}; copy or compile it again"
        assert told_of in told(damaged.run("--verify"))
        if member.filename in ("weights", "tokenizer.tables", "chat_template.pieces"):
            assert "damaged" in told(damaged.run(*HELLO))
        else:  # of `smc`, which looks at them itself
            assert damaged.text(*HELLO) == copy.text(*HELLO)
        damaged.path.unlink()
    assert "take no prompt" in copy.refusal("--verify", "Hello")


# ---- memory, threads and descriptors


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


def test_too_little_memory_is_told(copy: Executable) -> None:
    if copy.runner:
        pytest.skip("the emulator needs far more memory than the program")
    expected = copy.run(*HELLO).stdout
    size, ran = copy.path.stat().st_size, 0
    for kibibytes in (64, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 1 << 20):
        done = copy.run(*HELLO, "--threads", "2", preexec_fn=limited(resource.RLIMIT_AS, size + kibibytes * 1024))
        if done.returncode == 0:
            assert done.stdout == expected
            ran += 1
        elif done.returncode > 0:  # else the kernel could not even start it
            assert any(word in told(done) for word in ("memory", "allocate", "refuses", "room"))
    assert 0 < ran < 11


def test_too_long_a_context_is_told(executable: Executable) -> None:
    if executable.runner:
        pytest.skip("the emulator needs far more memory than the program")
    limit = limited(resource.RLIMIT_AS, 64 << 20)
    sentence = told(executable.run(*HELLO, "--ctx", "16777216", preexec_fn=limit))
    assert "KV cache" in sentence
    assert "shorter context" in sentence
    assert "context_length is 16777217: it must be between" in told(executable.run(*HELLO, "--ctx", "16777217"))


@needs_root
def test_a_machine_that_refuses_threads(copy: Executable) -> None:
    if copy.runner:
        pytest.skip("the emulator has a thread of its own")
    copy.path.chmod(0o755)
    done = copy.run(
        *HELLO, "--threads", "4",
        user=NOBODY - 1, group=NOBODY, extra_groups=(), preexec_fn=limited(resource.RLIMIT_NPROC, 1),
    )  # fmt: skip
    assert "refuses to start 4 threads" in told(done)


def test_no_file_can_be_opened(executable: Executable) -> None:
    if executable.runner:
        pytest.skip("the emulator opens files, too")
    assert "can't open" in told(executable.run(*HELLO, preexec_fn=limited(resource.RLIMIT_NOFILE, 3)))


# ---- input and output


def test_closed_streams(executable: Executable) -> None:
    def closed(*streams: int) -> subprocess.CompletedProcess[bytes]:
        return executable.run(*HELLO[:1], "-n", "9", stdin=None, preexec_fn=lambda: [*map(os.close, streams)])

    assert "can't be read from standard input: Bad file descriptor" in told(closed(0))
    done = executable.run(*HELLO, preexec_fn=lambda: os.close(1))
    assert "can't write to standard output" in told(done)
    assert executable.run(*HELLO, preexec_fn=lambda: os.close(2)).returncode == 0
    assert closed(0, 1, 2).returncode == 2


def test_a_reader_that_has_gone(executable: Executable) -> None:
    """As other programs do: they end by SIGPIPE, or where that is ignored by a sentence."""
    read, write = os.pipe()
    os.close(read)

    def run(handler: signal.Handlers) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            executable.command(*HELLO),
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
            restore_signals=False,
            preexec_fn=lambda: signal.signal(signal.SIGPIPE, handler) and None,
        )

    done = run(signal.SIG_DFL)
    assert done.returncode == -signal.SIGPIPE
    assert executable.runner or done.stderr == b""
    done = run(signal.SIG_IGN)
    assert (done.returncode, done.stderr) == (2, b"error: can't write to standard output: Broken pipe\n")
    os.close(write)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--info"], ["--raw", "Hello", "--json"]])
def test_a_full_disk(executable: Executable, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = executable.command(*arguments)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"error: can't write to standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (b"", "the prompt is empty"),
        (b"\n", "the prompt is empty"),
        (b"a" * 3_000_000, "the prompt has 3000000 tokens, but the context holds 200"),
        (b"a" * 70_000 + b"\xff", "the prompt on standard input is not UTF-8 text: its byte 70001 can't be there"),
    ],
    ids=["empty", "empty line", "huge", "broken"],
)
def test_prompts_on_standard_input(executable: Executable, prompt: bytes, words: str) -> None:
    assert words in told(executable.run("--raw", stdin=prompt))


def test_zero_bytes_are_text(executable: Executable) -> None:
    assert executable.run("--raw", "-n", "3", stdin=b"a\0b").returncode == 0


def test_standard_input_is_a_folder(executable: Executable, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    done = subprocess.run(executable.command("--raw"), stdin=folder, capture_output=True, check=False)
    os.close(folder)
    assert "can't be read from standard input: Is a directory" in told(done)


def test_a_chat_that_outgrows_its_context_forgets(executable: Executable) -> None:
    done = executable.run("--chat", "-n", "20", "--ctx", "60", stdin=b"hello there, my friend\n" * 4)
    assert done.returncode == 0
    assert b"oldest messages are forgotten" in done.stderr
    assert "the prompt has" in executable.run("--chat", "--ctx", "9", stdin=b"hello there\n").stderr.decode()
