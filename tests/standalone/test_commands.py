"""Standalone executables do what `smc run`, `smc chat` and `smc bench` do with the same file."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import AddedToken

from smc.cli.run import run
from smc.errors import Notice
from smc.generation import GenerationDefaults
from smc.runtime import load
from tests.runtime.conftest import VOCAB, byte_tokenizer, counting_text
from tests.standalone.conftest import BuildExecutable, Executable

TOKENIZER = byte_tokenizer()
USER, END, BOT, *LINE_BREAK = [256, 257, 258, *TOKENIZER.encode("\n").ids]


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def decode(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True))


def continuation(text: str, count: int) -> str:
    """What the counting model makes of a plain text."""
    return decode(counting_text(encode(text), count))


def chat_prompt(messages: list[str]) -> list[int]:
    return [*(t for message in messages for t in [USER, *encode(message), END, *LINE_BREAK]), BOT]


def answer(messages: list[str], count: int) -> str:
    """What it says to a conversation."""
    return decode(counting_text(chat_prompt(messages), count))


def line(text: str) -> str:
    """A printed text: a line break is added where there is none."""
    return text if text.endswith("\n") or not text else text + "\n"


def python_run(executable: Executable, *arguments: str) -> str:
    """The output of `smc run`."""
    result = CliRunner().invoke(run, [str(executable.path), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout_bytes.decode()  # stdout has no "\r\n"


# ---------------------------------------------------------------- text


def test_raw_prompts(executable: Executable):
    expected = line(continuation("Hello", 20))
    assert executable.text("--raw", "Hello", "-n", "20") == expected
    assert executable.text("Hello", "-n20", "--raw") == expected
    assert executable.text("--raw", "--max-tokens=20", "--", "Hello") == expected
    assert executable.text("--raw", "-n", "20", stdin=b"Hello\n") == expected
    assert executable.text("-", "--raw", "-n", "20", stdin=b"Hello") == expected


def test_a_prompt_is_a_message_of_a_chat(executable: Executable):
    assert executable.text("hi", "-n", "9") == line(answer(["hi"], 9))
    assert executable.text("hi", "--system", "be brief", "-n", "9") == line(answer(["be brief", "hi"], 9))
    # Special tokens' text in a message is text.
    assert executable.text("<end>", "-n", "9") == python_run(executable, "<end>", "-n", "9")


def test_without_template_a_prompt_is_continued(sampling_executable: Executable):
    assert sampling_executable.text("Hello", "-n", "9", "--temperature", "0") == line(continuation("Hello", 9))


def test_text_that_is_piped_in_comes_before_the_prompt(executable: Executable):
    expected = line(continuation("some\ntext\n\nHello", 9))
    assert executable.text("--raw", "Hello", "-n", "9", stdin=b"some\ntext\n") == expected
    assert executable.text("--raw", "Hello", "-n", "9", stdin=b"") == line(continuation("Hello", 9))
    assert "standard input is not UTF-8 text" in executable.refusal("--raw", "Hello", stdin=b"\xff")


def test_streams_that_bring_nothing(executable: Executable):
    """A pipe that stays open is explained; what can't be read, as nohup leaves it, is as good as empty."""
    command = executable.command("hello", "--raw", "-n", "3")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert b"waiting for text on standard input" in process.stderr.readline()
        process.stdin.write(b"text\n")
        process.stdin.close()
        assert process.stdout.read().decode() == line(continuation("text\n\nhello", 3))
    with open(os.devnull, "w") as unreadable:
        done = subprocess.run(command, stdin=unreadable, capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, line(continuation("hello", 3)), b"")


def test_events(executable: Executable):
    arguments = ["Hello", "--raw", "-n", "40", "--json", "--stream", "--temperature", "0"]
    *texts, result = map(json.loads, executable.text(*arguments).splitlines())
    *expected, python = map(json.loads, python_run(executable, *arguments).splitlines())
    assert texts == expected and len(texts) > 10
    assert result.keys() == python.keys() and result["event"] == "result"
    assert result["text"] == "".join(event["text"] for event in texts)
    assert "--stream needs --json" in executable.refusal("Hello", "--stream")


def test_quiet_verbose_and_version(executable: Executable):
    verbose = executable.run("--raw", "Hello", "-n", "3", "-v", "--threads", "1")
    assert verbose.stderr == b"counting, 1 threads, level best, context 200\n"
    assert executable.run("--raw", "Hello", "-n", "3", "-q").stderr == b""
    assert executable.text("-V") == executable.text("--version")


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_no_color(executable: Executable, no_color: str, colored: bool):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color}
    done = subprocess.run(executable.command("--none"), stdout=theirs, stderr=theirs, env=environment, check=False)
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 2
    assert (b"\x1b[" in shown) == colored


def test_bench_shows_progress_on_a_terminal(executable: Executable):
    ours, theirs = pty.openpty()
    command = executable.command("--bench", "--prompt-tokens", "4", "--decode-tokens", "0", "--repeat", "2")
    for options in ([], ["-q"]):
        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, stderr=theirs, check=False)
        assert b"prefill" in done.stdout
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert shown.count("measure: 25 %, about ") == 1
    assert shown.endswith("\r\x1b[K")


def test_limits(executable: Executable):
    assert executable.text("--raw", "Hello", "-n", "0") == ""
    result = json.loads(executable.text("--raw", "Hello", "--ctx", "12", "--json"))
    assert result["tokens"] == counting_text(encode("Hello"), 8)  # the last is chosen, but never run
    assert result["finish_reason"] == "length"


def test_a_tokenizer_with_more_tokens_than_the_model(build_executable: BuildExecutable):
    """A prompt's ids are checked before anything has a place for each of the model's tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(f"<extra{i}>", normalized=False) for i in range(5000)])
    more = build_executable(tokenizer=tokenizer.to_str())
    expected = f"token {VOCAB + 4999} is not in the vocabulary of {VOCAB} tokens"
    for options in ((), ("--temperature", "1"), ("--repetition-penalty", "2"), ("--json", "--logprobs", "1")):
        assert more.refusal("--raw", "Hello<extra4999>", *options) == expected
    assert more.text("--raw", "Hello", "-n", "9") == line(continuation("Hello", 9))


@pytest.mark.parametrize("bad", ["NAN", "INFINITY", "-INFINITY"])
def test_logits_that_are_no_numbers(build_executable: BuildExecutable, bad: str):
    broken = build_executable(
        ("#include <string.h>\n", "#include <math.h>\n#include <string.h>\n"),
        ("logits[v] = -0.125f", f"logits[v] = v == 9 ? {bad} : -0.125f"),
    )
    for options in ((), ("--temperature", "1"), ("--json", "--logprobs", "3")):
        assert "results are NaN or infinite" in broken.refusal("--raw", "Hello", "-n", "3", *options)


def test_a_context_that_is_longer_than_the_trained_one(executable: Executable):
    arguments = ("--raw", "Hello", "-n", "2", "--ctx")
    done = executable.run(*arguments, "201")
    start = b"note: a context of 201 tokens is longer than the 200 that the model was trained for"
    assert (done.returncode, done.stdout.decode()) == (0, line(continuation("Hello", 2)))
    assert done.stderr.startswith(start)
    assert executable.run(*arguments, "201", "-q").stderr == executable.run(*arguments, "200").stderr == b""
    with pytest.warns(Notice, match="a context of 201 tokens is longer than the 200"):
        load(executable.path, context_length=201).close()


def test_end_of_sequence_ends_the_text(build_executable: BuildExecutable):
    tokens = counting_text(encode("Hello"), 6)
    shorter = build_executable(generation=GenerationDefaults((tokens[5], 300)))
    result = json.loads(shorter.text("--raw", "Hello", "-n", "20", "--json"))
    first = tokens.index(tokens[5])
    assert (result["tokens"], result["finish_reason"]) == (tokens[: first + 1], "stop")
    assert result["text"] == decode(tokens[:first])


@pytest.mark.parametrize("arguments", [["-n", "30"], ["-n", "60", "--stop", "never there"], ["--stop", "", "-n", "5"]])
def test_texts_are_those_of_smc_run(executable: Executable, arguments: list[str]):
    for prompt in ("Hello", "ä\nb", "\U0001f600 and more"):
        assert executable.text("--raw", prompt, *arguments) == python_run(executable, "--raw", prompt, *arguments)


def test_stop_texts(executable: Executable):
    text = continuation("Hello", 40)
    for begin, end in ((3, 4), (4, 6), (7, 12)):
        stop = text[begin:end]
        expected = json.loads(python_run(executable, "--raw", "Hello", "-n", "40", "--json", "--stop", stop))
        result = json.loads(
            executable.text("--raw", "Hello", "-n", "40", "--json", "--stop", "nowhere", "--stop", stop)
        )
        assert [result[key] for key in ("text", "tokens", "finish_reason")] == [
            expected[key] for key in ("text", "tokens", "finish_reason")
        ]
        assert result["finish_reason"] == "stop" and result["text"] == text[: text.index(stop)]


@pytest.mark.parametrize(
    "options",
    [
        "--temperature 1",
        "--temperature 3.7",
        "--temperature 1 --top-k 1",
        "--temperature 2 --top-k 17",
        "--temperature 2 --top-p 0.35",
        "--temperature 9 --top-p 0.99",
        "--temperature 1 --top-p 0.999999",  # takes tokens less likely than those that are sorted first
        "--temperature 2 --min-p 0.2",
        "--temperature 1e-300 --top-p 0.9",
        "--temperature 1.7e308 --min-p 5e-324",
        "--temperature 1e-40 --top-k 5 --repetition-penalty 1e30",
        "--temperature 2 --top-k 40 --top-p 0.8 --min-p 0.05 --repetition-penalty 1.3",
        "--repetition-penalty 1.7",
        "--temperature 1 --repetition-penalty 0.6",
    ],
)
def test_the_same_seed_gives_the_same_text(executable: Executable, sampling_executable: Executable, options: str):
    for seed in ("0", "18446744073709551615"):
        arguments = ("--raw", "Hello", "-n", "80", "--json", "--seed", seed, *options.split())
        for program in (executable, sampling_executable):
            expected = json.loads(python_run(program, *arguments))
            result = json.loads(program.text(*arguments))
            assert [result["tokens"], result["text"]] == [expected["tokens"], expected["text"]]


def test_the_checkpoint_says_how_to_sample(sampling_executable: Executable):
    arguments = ("Hello", "-n", "40", "--seed", "3")
    assert sampling_executable.text(*arguments) == python_run(sampling_executable, *arguments)
    explicit = ("--temperature", "0.7", "--top-p", "0.9", "--top-k", "30")
    assert sampling_executable.text(*arguments) == sampling_executable.text(*arguments, *explicit)
    assert len({sampling_executable.text("Hello", "-n", "40") for _ in range(3)}) > 1


def test_json_and_stats(executable: Executable):
    done = executable.run("--raw", 'a "quoted" \\ text', "-n", "5", "--json", "--stats")
    result, expected = json.loads(done.stdout), json.loads(python_run(executable, "--raw", "x", "-n", "5", "--json"))
    assert set(result) == set(expected)
    assert result["prompt_tokens"] == encode('a "quoted" \\ text')
    assert result["prefill"]["tokens"] == len(result["prompt_tokens"])
    assert result["decode"]["tokens"] == 4 and result["decode"]["tokens_per_s"] > 0
    assert result["level"] == "best"
    assert b"answer: 5 tokens" in done.stderr and b"peak memory" in done.stderr


def test_json_of_every_byte(executable: Executable):
    with load(executable.path) as model:
        for prompt in ("\x01\x1f\x7f", '\t\\"', "ÿ\u2028"):
            result = json.loads(executable.text("--raw", prompt, "-n", "150", "--json"))
            assert result["text"] == model.generate(prompt, max_tokens=150).text


@pytest.mark.parametrize("count", ["0", "1", "5", "300"])
def test_log_probabilities(executable: Executable, count: str):
    arguments = ("--raw", "Hello", "-n", "70", "--temperature", "3", "--seed", "1", "--logprobs", count)
    assert executable.text(*arguments) == python_run(executable, *arguments)
    result = json.loads(executable.text(*arguments, "--json"))["logprobs"]
    expected = json.loads(python_run(executable, *arguments, "--json"))["logprobs"]
    for entry, wanted in zip(result, expected, strict=True):
        assert [entry["token"], entry["text"]] == [wanted["token"], wanted["text"]]
        assert entry["logprob"] == pytest.approx(wanted["logprob"], rel=1e-12)
        assert [top["token"] for top in entry["top"]] == [top["token"] for top in wanted["top"]]
        assert [top["logprob"] for top in entry["top"]] == pytest.approx([top["logprob"] for top in wanted["top"]])


def test_threads_and_cache_change_nothing(executable: Executable):
    expected = line(continuation("Hello", 30))
    for options in ("--threads 1", "-t 3", "--kv-dtype f32", "--level floor", "--ctx 50"):
        assert executable.text("--raw", "Hello", "-n", "30", *options.split()) == expected


# ---------------------------------------------------------------- chat


def test_chat_keeps_the_history(executable: Executable):
    first = answer(["hi"], 3)
    second = answer(["hi", first, "yes"], 3)
    text = executable.text("--chat", "-n", "3", stdin=b"hi\n yes \n\n/reset\nhi\n/exit\nnever read\n")
    assert text == f"{first}\n{second}\n{first}\n"
    assert executable.text("--chat", "-n", "3", "--system", "s", stdin=b"hi") == answer(["s", "hi"], 3) + "\n"


def test_chat_forgets_what_does_not_fit(executable: Executable):
    lines = f"{'a' * 30}\n{'b' * 30}\n".encode()
    done = executable.run("--chat", "-n", "2", "--ctx", "60", "--system", "s", stdin=lines)
    assert done.returncode == 0
    assert done.stderr == b"(the context is full: the 2 oldest messages are forgotten)\n"
    assert done.stdout.decode().endswith(answer(["s", "b" * 30], 2) + "\n")


def test_message_that_can_never_fit(executable: Executable):
    assert "the context holds 20" in executable.refusal("--chat", "--ctx", "20", stdin=b"a" * 50)


class Terminal:
    """A program whose terminal we hold the other end of."""

    def __init__(self, command: list[str]) -> None:
        self.own, other = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, close_fds=True
        )
        os.close(other)
        self.seen = ""

    def await_text(self, text: str) -> str:
        """What came up to and with this text; what came before it is forgotten."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.own], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.own, 4096).decode()
                except OSError:  # the other end is closed
                    assert text in self.seen, self.seen
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.own, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> int:
        status = self.process.wait(30)
        os.close(self.own)
        return status


def test_chat_on_a_terminal(executable: Executable):
    terminal = Terminal(executable.command("-n", "3"))
    assert "Ctrl-D leaves" in terminal.await_text("> ")
    terminal.type("hi\n")
    first = answer(["hi"], 3)
    terminal.await_text(first)
    terminal.await_text("> ")
    for _ in range(50):  # none is missed, however soon after the prompt it comes
        terminal.interrupt()
        terminal.await_text("/reset starts again")
        terminal.await_text("> ")
    terminal.type("yes\n")
    terminal.await_text(answer(["hi", first, "yes"], 3))
    terminal.await_text("> ")
    terminal.type("\x04")
    assert terminal.close() == 0


def test_ctrl_c_stops_an_answer(build_executable: BuildExecutable):
    # The template begins with a token after which a step takes a second.
    slow = build_executable(("SLOW = 1000", "SLOW = 256"))
    terminal = Terminal(slow.command("-n", "3"))
    terminal.await_text("> ")
    terminal.type("hi\n")
    terminal.await_text("hi")
    time.sleep(0.3)
    started = time.monotonic()
    terminal.interrupt()
    terminal.await_text(" …")
    terminal.await_text("> ")
    assert time.monotonic() - started < 0.6
    terminal.type("/exit\n")
    assert terminal.close() == 0


def test_ctrl_c_ends_a_text(build_executable: BuildExecutable):
    slow = build_executable(("SLOW = 1000", f"SLOW = {encode('a')[0]}"))
    process = subprocess.Popen(slow.command("--raw", "abc"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.communicate() == (b"", b"")


# ---------------------------------------------------------------- bench, info, help


def test_bench(executable: Executable):
    arguments = ("--bench", "--prompt-tokens", "20", "--decode-tokens", "6", "--depth", "7", "--repeat", "3")
    report = json.loads(executable.text(*arguments, "--json"))
    assert report["prefill"]["tokens"] == 20 and report["decode"]["tokens"] == 6
    for part in (report["prefill"], report["decode"]):
        assert 0 < part["slowest"] <= part["tokens_per_s"] <= part["fastest"]
    # 48 bytes of weights; K and V of 16 halves for 7 + (6 + 1) / 2 tokens.
    assert report["decode"]["bytes_per_token"] == round(48 + 10.5 * 64)
    assert report["weight_bytes"] == 64
    table = executable.text(*arguments)
    assert "prefill     20 tokens after 7: " in table and "decode       6 tokens after 7: " in table
    assert "decode" not in executable.text("--bench", "--prompt-tokens", "9", "--decode-tokens", "0", "--repeat", "1")
    assert "do not fit the context of 200" in executable.refusal("--bench")


def test_info(executable: Executable):
    facts = json.loads(executable.text("--info", "--json"))
    assert facts["name"] == "counting" and facts["architecture"] == "Counting" and facts["chat"] is True
    assert facts["file_bytes"] == executable.path.stat().st_size
    assert facts["levels"] == ["best", "floor", "never"] and facts["level"] == "best"
    assert (facts["parameters"], facts["bits_per_weight"], facts["context_length"]) == (16, 32.0, 200)
    assert facts["provenance"] == "made by hand\nnot changed"
    assert "made by hand\n              not changed\n" in executable.text("--info")


WITHOUT = {"model_path", "prompt", "--functions", "--must-call", "--draft"}
"""What executables do not have of `smc run`."""


def test_help_and_version(executable: Executable):
    text = executable.text("--help")
    assert text == executable.text("-h")
    for parameter in run.params:
        for option in parameter.opts:
            assert f" {option}" in text or option in WITHOUT
    assert executable.text("--version").startswith("counting, compiled by smc ")


# ---------------------------------------------------------------- the file


def test_the_file_is_an_artifact(executable: Executable):
    assert executable.path.read_bytes()[:4] == b"\x7fELF"
    assert os.access(executable.path, os.X_OK)
    with zipfile.ZipFile(executable.path) as archive:
        assert archive.testzip() is None
        assert {"weights", "program.so", "tokenizer.tables", "chat_template.pieces"} <= set(archive.namelist())
    assert python_run(executable, "hi", "-n", "9") == line(answer(["hi"], 9))


def test_it_finds_itself(executable: Executable, tmp_path: Path):
    expected = line(continuation("Hello", 9))
    folder = tmp_path / "read only"
    folder.mkdir()
    copy = executable.moved(folder / "another name")
    copy.path.write_bytes(executable.path.read_bytes())
    copy.path.chmod(0o555)
    folder.chmod(0o555)
    assert copy.text("--raw", "Hello", "-n", "9") == expected
    link = executable.moved(tmp_path / "link")
    link.path.symlink_to(copy.path)
    assert link.text("--raw", "Hello", "-n", "9") == expected


@pytest.mark.parametrize("kept", [0.999, 0.7, "without directory"])
def test_a_cut_file_is_told(executable: Executable, tmp_path: Path, kept: float | str):
    content = executable.path.read_bytes()
    with zipfile.ZipFile(executable.path) as archive:
        elf = min(info.header_offset for info in archive.infolist())
        directory = archive.start_dir
    length = directory if isinstance(kept, str) else elf + int(kept * (len(content) - elf))
    cut = executable.moved(tmp_path / "cut")
    cut.path.write_bytes(content[:length])
    cut.path.chmod(0o755)
    for arguments in (["--raw", "Hello"], ["--info"], ["--bench"]):
        assert "incomplete" in cut.refusal(*arguments)
    assert "Usage" in cut.text("--help")


# ---------------------------------------------------------------- what is wrong is a sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nonsense", "x"], "there is no option --nonsense"),
        (["-z", "x"], "there is no option -z"),
        (["--raw=yes", "x"], "--raw takes no value"),
        (["x", "--top-k"], "--top-k needs a value"),
        (["x", "-n"], "--max-tokens needs a value"),
        (["x", "-n", "many"], "--max-tokens takes a whole number from 0 "),
        (["x", "-n", "-1"], "--max-tokens takes a whole number from 0 "),
        (["x", "-n", "99999999999999999999"], "--max-tokens takes a whole number"),
        (["x", "-n", "5x"], "--max-tokens takes a whole number"),
        (["x", "--seed", "-1"], "--seed takes a whole number"),
        (["x", "--seed", "18446744073709551616"], "--seed takes a whole number"),
        (["x", "--temperature", "hot"], "--temperature takes a number, not 'hot'"),
        (["x", "--temperature", "-0.1"], "temperature is -0.1, but must be 0 (greedy) or more"),
        (["x", "--temperature", "nan"], "temperature is nan"),
        (["x", "--temperature", "inf"], "temperature is inf"),
        (["x", "--top-p", "0"], "top_p is 0, but must be above 0 and at most 1"),
        (["x", "--min-p", "1.5"], "min_p is 1.5, but must be from 0 to 1"),
        (["x", "--repetition-penalty", "0"], "repetition_penalty is 0, but must be from 1e-30 to 1e30"),
        (["x", "--kv-dtype", "f64"], "--kv-dtype takes f16, f32 or i8, not 'f64'"),
        (["x", "--threads", "65"], "threads is 65"),
        (["x", "--level", "best2"], "has no level 'best2': it has best, floor, never"),
        (["x", "--level", "never"], "this CPU can't run level never: it lacks no-such-feature"),
        (["--raw", "x" * 201], "the prompt has 201 tokens, but the context holds 200"),
        (["--raw", "x" * 21, "--ctx", "20"], "the prompt has 21 tokens, but the context holds 20"),
        (["--raw", ""], "the prompt is empty"),
        (["--raw"], "the prompt is empty"),
        (["--raw", "--system", "s", "x"], "--system needs a chat template: leave out --raw"),
        (["--raw", "two", "prompts"], "more than one prompt"),
        (["--bench", "x"], "take no prompt"),
        (["--bench", "--info"], "exclude each other"),
        (["--bench", "--repeat", "0"], "--repeat takes a whole number from 1 "),
    ],
)
def test_wrong_input(executable: Executable, arguments: list[str], sentence: str):
    assert sentence in executable.refusal(*arguments)


def test_broken_utf8_is_told(executable: Executable):
    for broken in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe2\x82"):
        assert "the prompt on standard input is not UTF-8 text" in executable.refusal("--raw", stdin=broken)
        assert "not UTF-8 text" in executable.refusal("--chat", stdin=broken)
        assert "not UTF-8 text" in executable.refusal("--raw", os.fsdecode(broken))


def test_templates_that_are_not_there_or_cannot_be_split(
    build_executable: BuildExecutable, sampling_executable: Executable
):
    assert "no chat template" in sampling_executable.refusal("--chat")
    assert "--system needs a chat template" in sampling_executable.refusal("x", "--system", "s")
    strange = build_executable(chat_template="{{ messages | length * messages[0]['content'] | length }}")
    for arguments in (["hi"], ["--chat"]):
        sentence = strange.refusal(*arguments)
        assert "can't chat, as the chat template " in sentence and "--raw" in sentence
    assert strange.text("--raw", "Hello", "-n", "9") == line(continuation("Hello", 9))
    assert json.loads(strange.text("--info", "--json"))["chat"] is False


def test_output_that_nobody_takes_is_told(executable: Executable):
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(executable.command("--raw", "Hello", "-n", "9"), stdout=full, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors == b"error: can't write to standard output: No space left on device\n"
