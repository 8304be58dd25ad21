"""A conversation with a model: its messages, what is forgotten when the context is full, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.runtime.model import Model
from smc.runtime.text_stream import TextStream

Messages = list[dict[str, str]]

LEAST_ROOM = 1 / 8
"""Of the context: so much is kept free for an answer whose length nobody limits."""


class Conversation:
    """Turns of user and assistant after a system message.

    messages: user's and assistant's in turn. forgotten: how many of the oldest turns no longer reach the model; they
    stay in `messages`. room: tokens that an answer shall have; 0: an eighth of the context.
    """

    def __init__(self, model: Model, system: str | None = None, room: int = 0) -> None:
        self.model = model
        self.system = system
        self.messages: Messages = []
        self.forgotten = 0
        self._room = min(room or max(1, int(model.context_length * LEAST_ROOM)), max(1, model.context_length // 2))
        self._sequence = model.new_sequence()

    @property
    def used(self) -> int:
        """Tokens of the context that are in use."""
        return self._sequence.length

    def ask(self, text: str, options: Mapping[str, Any]) -> TextStream:
        """The answer to a message, to be read and then given to `add`. Options are those of `Model.stream`.

        Forgets whole turns, the oldest first, where the answer would lack room. InputError for a message that does not
        fit even alone; the conversation is as before then.
        """
        question = {"role": "user", "content": text}
        kept = self.messages[2 * self.forgotten :]
        prompt = self._prompt([*kept, question])
        forgotten = self.forgotten
        while kept and len(prompt) + self._room > self.model.context_length:
            kept = kept[2:]
            forgotten += 1
            prompt = self._prompt([*kept, question])
        if len(prompt) + self._room > self.model.context_length:
            raise InputError(
                f"the message has {len(prompt)} tokens with what belongs to it, and an answer needs room for "
                f"{self._room}, but the context holds {self.model.context_length}: shorten it, or give a longer --ctx"
            )
        self.forgotten = forgotten
        return self.model.stream(prompt, sequence=self._sequence, **options)

    def add(self, question: str, answer: str) -> None:
        """A turn is over."""
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def take_back(self) -> str:
        """Remove the last turn; its question. InputError where there is none."""
        if not self.messages:
            raise InputError("there is nothing to retry yet")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self.forgotten = min(self.forgotten, len(self.messages) // 2)
        return question

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages.clear()
        self.forgotten = 0

    def save(self, path: Path) -> None:
        """Write the conversation as JSON. InputError where that fails."""
        data = {"system": self.system, "messages": self.messages}
        try:
            path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"can't write {path}: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Go on with a saved conversation. InputError for what is none; the conversation is as before then."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is no saved conversation: it is no JSON") from None
        data = data if isinstance(data, dict) else {}
        messages, system = data.get("messages"), data.get("system")
        turns = _turns(messages) if isinstance(messages, list) else None
        if turns is None or not isinstance(system, (str, type(None))):
            raise InputError(f"{path} is no saved conversation: /save writes such files")
        self.system, self.messages = system, turns
        self.forgotten = 0

    def close(self) -> None:
        """Free the sequence."""
        self._sequence.drop()

    def _prompt(self, messages: Messages) -> list[int]:
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return self.model.apply_chat_template([*first, *messages])


def _turns(messages: list[Any]) -> Messages | None:
    """The messages, if they are questions and answers in turn."""
    roles = ("user", "assistant") * (len(messages) // 2)
    if len(roles) != len(messages):
        return None
    for message, role in zip(messages, roles, strict=True):
        if not (isinstance(message, dict) and message.get("role") == role and isinstance(message.get("content"), str)):
            return None
    return [{"role": message["role"], "content": message["content"]} for message in messages]
