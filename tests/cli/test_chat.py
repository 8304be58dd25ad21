"""`smc chat`: history in the KV cache, commands, a context that fills up."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smc.cli.answers import complete_blocks
from smc.cli.chat import chat
from smc.errors import InputError
from smc.runtime import load
from smc.runtime.conversation import Conversation
from tests.runtime.conftest import byte_tokenizer, counting_text, write_artifact

TERMINAL = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

TOKENIZER = byte_tokenizer()
USER, END, BOT, *LINE_BREAK = [256, 257, 258, *TOKENIZER.encode("\n").ids]


def invoke(artifact: Path, text: str, *arguments: str) -> Result:
    return CliRunner().invoke(chat, [str(artifact), *arguments], input=text, catch_exceptions=False)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def answer(messages: list[str], count: int) -> str:
    """What the counting model says to a conversation."""
    prompt = [t for message in messages for t in [USER, *encode(message), END, *LINE_BREAK]]
    return str(TOKENIZER.decode(counting_text([*prompt, BOT], count), skip_special_tokens=True))


def test_history_is_kept_and_reset(artifact: Path):
    first = answer(["hi"], 3)
    second = answer(["hi", first, "yes"], 3)
    result = invoke(artifact, "hi\nyes\n\n/reset\nhi\n/exit\nnever read\n", "-n", "3")
    assert result.stdout == f"{first}\n{second}\n{first}\n"


def test_speculation_changes_nothing(artifact: Path):
    lines, options = "hi\nhi\n/retry\nyes\n", ("-n", "9", "--temperature", "0.7", "--seed", "3")
    plain = invoke(artifact, lines, *options)
    for draft in ("lookup", str(artifact)):
        assert invoke(artifact, lines, *options, "--draft", draft).stdout == plain.stdout


def test_system_message_and_end_of_input(artifact: Path):
    assert invoke(artifact, "hi", "-n", "3", "--system", "be brief").stdout == answer(["be brief", "hi"], 3) + "\n"


def test_full_context_forgets_whole_turns(artifact: Path):
    result = invoke(artifact, f"{'a' * 30}\n{'b' * 30}\n", "-n", "2", "--ctx", "60", "--system", "s")
    assert "the 1 oldest turn dropped" in result.stderr
    assert result.stdout.endswith(answer(["s", "b" * 30], 2) + "\n")


def test_message_that_can_never_fit(artifact: Path):
    with pytest.raises(InputError, match="but the context holds 20"):
        invoke(artifact, "a" * 50, "--ctx", "20")


def test_commands(artifact: Path, tmp_path: Path):
    first, second = answer(["hi"], 3), answer(["be brief", "hi"], 3)
    saved = tmp_path / "talk.json"
    lines = ["hi", "/retry", f"/save {saved}", "/system be brief", "hi", f"/load {saved}", "yes", "/system", "hi"]
    result = invoke(artifact, "\n".join([*lines, "/bye", "never read"]), "-n", "3")
    third = answer(["hi", first, "yes"], 3)
    assert result.stdout == "".join(f"{text}\n" for text in (first, first, second, third, first))
    assert json.loads(saved.read_text()) == {
        "system": None,
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": first}],
    }
    for command in ("/system TEXT", "/reset", "/retry", "/save FILE", "/load FILE", "/help", "/bye"):
        assert command in invoke(artifact, "/help\n").stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/unknown", "there is no command /unknown: use one of /system, /reset"),
        ("/retry", "nothing to retry"),
        ("/save", "/save needs the name of a file"),
        ("/save /nowhere/x", "can't write /nowhere/x"),
        ("/load /nowhere/x", "can't read /nowhere/x"),
        (f"/load {__file__}", "is not a saved conversation"),
    ],
)
def test_commands_that_are_refused(artifact: Path, line: str, named: str):
    with pytest.raises(InputError, match=named):
        invoke(artifact, line)


def test_a_refused_message_keeps_the_conversation(artifact: Path):
    with load(artifact, context_length=60) as model:
        conversation = Conversation(model)
        conversation.ask("hi", {"max_tokens": 2})
        conversation.add("hi", "yes")
        with pytest.raises(InputError, match="shorten it"):
            conversation.ask("a" * 70, {})
        assert conversation.messages[0]["content"] == "hi" and conversation.forgotten == 0


def test_markdown_blocks_settle():
    assert complete_blocks("one\n\ntwo") == ("one\n\n", "two")
    assert complete_blocks("```\na\n\nb") == ("", "```\na\n\nb")
    assert complete_blocks("```\na\n\nb\n```\n\nc") == ("```\na\n\nb\n```\n\n", "c")
    assert complete_blocks("one") == ("", "one")


def test_on_a_terminal(artifact: Path):
    """A pseudo-terminal: a wrong command is told, pasted lines are one message, and the program ends by Ctrl-D."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "smc", "chat", str(artifact), "-n", "3"],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **TERMINAL}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown = ""

    def wait_for(text: str, times: int = 1) -> None:
        nonlocal shown
        deadline = time.monotonic() + 60
        while shown.count(text) < times:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 1)[0]:
                shown += os.read(master, 65536).decode("utf-8", "replace")

    wait_for("\x1b[?2004h")  # it takes pasted text, so it has begun
    os.write(master, b"/nonsense\r")
    wait_for("no command /nonsense")
    os.write(master, b"\x1b[200~hi\nyou\x1b[201~\r")
    wait_for("of 200 tokens of context")
    wait_for("\x1b[?2004h", times=3)  # what is typed before a prompt is not its own
    os.write(master, b"\x04")
    assert process.wait(30) == 0
    os.close(master)


def test_without_chat_template(program: bytes, tmp_path: Path, artifact: Path):
    with load(artifact) as model:

        members: dict[str, bytes | str] = {"weights": bytes(64), "manifest.json": model.artifact.manifest.text()}
    plain = write_artifact(tmp_path / "plain.smc", members | {"program.so": program})
    with pytest.raises(InputError, match="has no chat template"):
        invoke(plain, "hi\n")
