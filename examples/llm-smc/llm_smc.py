"""A plugin for simonw/llm: artifacts of smc as its models.

    llm install ./examples/llm-smc
    cp smollm2.smc "$(dirname "$(llm logs path)")/smc/"
    llm -m smc/smollm2 "What is the capital of France?"

Every artifact in the folder `smc` beside llm's own files is a model; LLM_SMC_MODELS names another folder. An artifact
is opened when it is first asked, and stays open while llm runs.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llm
from pydantic import Field

import smc
from smc.runtime import Model


def models_folder() -> Path:
    """Where the artifacts are."""
    named = os.environ.get("LLM_SMC_MODELS")
    return Path(named) if named else Path(llm.user_dir()) / "smc"


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """What llm asks every plugin."""
    for path in sorted(models_folder().glob("*.smc")):
        register(SmcModel(path))


class SmcModel(llm.Model):
    """An artifact."""

    can_stream = True

    class Options(llm.Options):
        """`-o NAME VALUE` of llm."""

        max_tokens: int | None = Field(default=None, description="Most tokens of an answer", ge=1)
        temperature: float | None = Field(default=None, description="0 is greedy", ge=0)
        top_p: float | None = Field(default=None, description="Of the likeliest tokens", gt=0, le=1)
        seed: int | None = Field(default=None, description="The same seed gives the same text", ge=0)

    def __init__(self, path: Path) -> None:
        self.model_id = f"smc/{path.stem}"
        self._path = path
        self._opened: Model | None = None

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """The pieces of an answer."""
        if self._opened is None:
            self._opened = smc.load(self._path)
        model = self._opened
        given = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        if model.has_chat_template:
            text: Any = model.apply_chat_template(_messages(prompt, conversation))
        else:
            text = prompt.prompt
        answer = model.stream(text, **given)
        yield from answer
        response.set_usage(input=len(answer.result.prompt), output=len(answer.result.tokens))


def _messages(prompt: Any, conversation: Any) -> list[dict[str, str]]:
    """The conversation so far, and the question."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for earlier in conversation.responses if conversation is not None else ():
        messages.append({"role": "user", "content": earlier.prompt.prompt or ""})
        messages.append({"role": "assistant", "content": earlier.text()})
    return [*messages, {"role": "user", "content": prompt.prompt or ""}]
