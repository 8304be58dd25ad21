"""A conversation with a model: its messages, which old ones are dropped when the context is full, saving and
loading."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.runtime.model import Model
from smc.runtime.text_stream import TextStream

Messages = list[dict[str, str]]

Form = Callable[[list[dict[str, Any]]], tuple[list[dict[str, Any]], dict[str, Any]]]

LEAST_ROOM = 1 / 8
"""The share of the context that is kept free for an answer without a limit."""


class Conversation:
    """Turns of user and assistant after a system message.

    messages: user's and assistant's, alternating. forgotten: how many of the oldest turns the model does not get any
    more; they stay in `messages`. room: tokens that are kept free for an answer; 0: an eighth of the context.
    form: makes the messages and the variables that the chat template gets.
    """

    def __init__(
        self, model: Model, system: str | None = None, room: int = 0, form: Form = lambda messages: (messages, {})
    ) -> None:
        self._form = form
        self.model = model
        self.system = system
        self.messages: Messages = []
        self.forgotten = 0
        self._room = min(room or max(1, int(model.context_length * LEAST_ROOM)), max(1, model.context_length // 2))
        self._sequence = model.new_sequence()

    @property
    def used(self) -> int:
        """The number of tokens of the context that are in use."""
        return self._sequence.length

    def ask(self, text: str, options: Mapping[str, Any]) -> TextStream:
        """The stream of the answer to a message; give it to `add` when it has ended. Options are those of
        `Model.stream`.

        If the answer would lack room, the oldest turns are dropped. InputError for a message that does not fit even
        alone; then the conversation is unchanged.
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
                f"the message and its template have {len(prompt)} tokens, and an answer needs room for "
                f"{self._room}, but the context holds {self.model.context_length}: shorten it, or raise --ctx"
            )
        self.forgotten = forgotten
        return self.model.stream(prompt, sequence=self._sequence, **options)

    def add(self, question: str, answer: str) -> None:
        """Add a turn that has ended."""
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def take_back(self) -> str:
        """Remove the last turn and return its question. InputError if there is none."""
        if not self.messages:
            raise InputError("there is nothing to retry yet: ask something first")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self.forgotten = min(self.forgotten, len(self.messages) // 2)
        return question

    def reset(self) -> None:
        """Drop all turns; the system message stays."""
        self.messages.clear()
        self.forgotten = 0

    def save(self, path: Path) -> None:
        """Write the conversation as JSON. InputError if it can't be written."""
        data = {"system": self.system, "messages": self.messages}
        try:
            path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"can't write {path}: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Continue a saved conversation. InputError if the file is not one; then the conversation is unchanged."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is not a saved conversation: it is not JSON") from None
        data = data if isinstance(data, dict) else {}
        messages, system = data.get("messages"), data.get("system")
        turns = _turns(messages) if isinstance(messages, list) else None
        if turns is None or not isinstance(system, (str, type(None))):
            raise InputError(f"{path} is not a saved conversation: /save writes such files")
        self.system, self.messages = system, turns
        self.forgotten = 0

    def close(self) -> None:
        """Free the sequence."""
        self._sequence.drop()

    def _prompt(self, messages: Messages) -> list[int]:
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        shown, variables = self._form([*first, *messages])
        return self.model.apply_chat_template(shown, **variables)


def _turns(messages: list[Any]) -> Messages | None:
    """The messages, if questions and answers alternate."""
    roles = ("user", "assistant") * (len(messages) // 2)
    if len(roles) != len(messages):
        return None
    for message, role in zip(messages, roles, strict=True):
        if not (isinstance(message, dict) and message.get("role") == role and isinstance(message.get("content"), str)):
            return None
    return [{"role": message["role"], "content": message["content"]} for message in messages]
