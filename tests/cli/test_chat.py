"""`smc chat`: history in the KV cache, commands, a context that fills up."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smc.cli.chat import chat
from smc.errors import InputError
from smc.runtime import load
from tests.runtime.conftest import byte_tokenizer, counting_text, write_artifact

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


def test_system_message_and_end_of_input(artifact: Path):
    assert invoke(artifact, "hi", "-n", "3", "--system", "be brief").stdout == answer(["be brief", "hi"], 3) + "\n"


def test_full_context_forgets_the_oldest_messages(artifact: Path):
    result = invoke(artifact, f"{'a' * 30}\n{'b' * 30}\n", "-n", "2", "--ctx", "60", "--system", "s")
    assert "the 2 oldest messages are forgotten" in result.stderr
    assert result.stdout.endswith(answer(["s", "b" * 30], 2) + "\n")


def test_message_that_can_never_fit(artifact: Path):
    with pytest.raises(InputError, match="the context holds 20"):
        invoke(artifact, "a" * 50, "--ctx", "20")


def test_without_chat_template(program: bytes, tmp_path: Path, artifact: Path):
    with load(artifact) as model:

        members: dict[str, bytes | str] = {"weights": bytes(64), "manifest.json": model.artifact.manifest.text()}
    plain = write_artifact(tmp_path / "plain.smc", members | {"program.so": program})
    with pytest.raises(InputError, match="has no chat template"):
        invoke(plain, "hi\n")
