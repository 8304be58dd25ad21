"""`smc run` as a user sees it: text, standard input, JSON, Ctrl-C, wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smc.cli.run import run
from smc.errors import InputError
from tests.runtime.conftest import SLOW, byte_tokenizer, counting_text

TOKENIZER = byte_tokenizer()
HELLO = TOKENIZER.encode("hello").ids
CHAT = [256, *HELLO, 257, *TOKENIZER.encode("\n").ids, 258]


def invoke(artifact: Path, *arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(run, [str(artifact), *arguments], input=text, catch_exceptions=False)


def answer(prompt: list[int], count: int) -> str:
    tokens = counting_text(prompt, count)
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True))


def test_prompt_goes_through_the_chat_template(artifact: Path):
    assert invoke(artifact, "hello", "-n", "3").stdout == answer(CHAT, 3) + "\n"


@pytest.mark.parametrize("arguments", [["-"], []])
def test_prompt_from_standard_input(artifact: Path, arguments: list[str]):
    assert invoke(artifact, *arguments, "-n", "3", text="hello\n").stdout == answer(CHAT, 3) + "\n"


def test_text_that_is_piped_in_comes_before_the_prompt(artifact: Path):
    expected = answer(TOKENIZER.encode("some\ntext\n\nhello").ids, 3) + "\n"
    assert invoke(artifact, "hello", "--raw", "-n", "3", text="some\ntext\n").stdout == expected
    assert invoke(artifact, "hello", "--raw", "-n", "3", text="").stdout == answer(HELLO, 3) + "\n"


def test_streams_that_bring_nothing(artifact: Path):
    """A pipe that stays open is explained; what can't be read, as nohup leaves it, is as good as empty."""
    command = [sys.executable, "-m", "smc", "run", str(artifact), "hello", "--raw", "-n", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert b"waiting for text on standard input" in process.stderr.readline()
        process.stdin.write(b"text\n")
        process.stdin.close()
        assert process.stdout.read().decode() == answer(TOKENIZER.encode("text\n\nhello").ids, 3) + "\n"
    with open(os.devnull, "w") as unreadable:
        done = subprocess.run(command, stdin=unreadable, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer(HELLO, 3) + "\n", "")


def test_events(artifact: Path):
    arguments = ["hello", "--raw", "-n", "9", "--stop", "never", "--json", "--seed", "1"]
    *texts, result = map(json.loads, invoke(artifact, *arguments, "--stream").stdout.splitlines())
    assert len(texts) > 2 and all(event["event"] == "text" for event in texts)
    assert "".join(event["text"] for event in texts) == result["text"] == answer(HELLO, 9)
    assert result["event"] == "result"
    assert result.keys() - {"event"} == json.loads(invoke(artifact, *arguments).stdout).keys()
    with pytest.raises(InputError, match="--stream needs --json"):
        invoke(artifact, "hello", "--stream")


def test_verbose_and_quiet(artifact: Path):
    assert "level best, context 200" in invoke(artifact, "hello", "-n", "1", "-v").stderr
    assert invoke(artifact, "hello", "-n", "1", "-q").stderr == ""


def test_raw_prompt_is_continued(artifact: Path):
    assert invoke(artifact, "hello", "--raw", "-n", "3").stdout == answer(HELLO, 3) + "\n"


def test_json(artifact: Path):
    result = json.loads(invoke(artifact, "hello", "--raw", "-n", "3", "--json", "--logprobs", "2").stdout)
    assert result["tokens"] == counting_text(HELLO, 3)
    assert result["prompt_tokens"] == HELLO
    assert result["finish_reason"] == "length"
    assert result["prefill"]["tokens"] == len(HELLO)
    assert [entry["top"][0]["token"] for entry in result["logprobs"]] == result["tokens"]


def test_logprobs_and_stats(artifact: Path):
    result = invoke(artifact, "hello", "--raw", "-n", "3", "--logprobs", "2", "--stats", "--threads", "1")
    lines = result.stdout.splitlines()[1:]
    assert len(lines) == 3
    assert all(float(line.split()[0]) < 0 for line in lines)
    assert "answer: 3 tokens" in result.stderr
    assert "1 threads, level best" in result.stderr


def test_seed_and_temperature_reach_the_sampler(artifact: Path):
    arguments = ["hello", "--raw", "-n", "20", "--temperature", "3", "--seed"]
    assert invoke(artifact, *arguments, "1").stdout == invoke(artifact, *arguments, "1").stdout
    assert invoke(artifact, *arguments, "1").stdout != invoke(artifact, *arguments, "2").stdout


def test_wrong_input(artifact: Path, tmp_path: Path):
    for arguments, sentence in (
        (["x" * 300, "--raw"], "the prompt has 300 tokens, but the context holds 200"),
        (["", "--raw"], "the prompt is empty"),
        (["hello", "--raw", "--system", "x"], "leave out --raw"),
        (["hello", "--level", "none"], "has no level 'none'"),
        (["hello", "--top-p", "3"], "top_p is 3.0"),
    ):
        with pytest.raises(InputError, match=sentence):
            invoke(artifact, *arguments)
    with pytest.raises(InputError, match="does not exist"):
        invoke(tmp_path / "none.smc", "hello")


def start(artifact: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "smc", "run", str(artifact), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupt_keeps_the_text_and_exits_with_130(artifact: Path):
    """The first token is shown, the second takes a second, in which Ctrl-C comes."""
    # Ids 0 … 93 are one visible character each. After five tokens the sum is seven times the next token.
    prompts = ([a, b, 20, 20, 20] for a in range(8, 94) for b in range(8, 94))
    prompt = next(tokens for tokens in prompts if counting_text(tokens, 2) == [1, SLOW])
    process = start(artifact, TOKENIZER.decode(prompt), "--raw")
    assert process.stdout is not None
    shown = process.stdout.read(2)  # the second token's character too: it is run only then
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (shown + rest).decode() == answer(prompt, 2) + "\n"
    assert b"Traceback" not in errors


def test_reader_that_leaves_is_no_bug(artifact: Path):
    process = start(artifact, "hello", "--raw", "-n", "150")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait()
