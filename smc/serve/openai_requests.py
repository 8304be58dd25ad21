"""Requests of OpenAI's API as pydantic models: their fields, with types and ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from smc.runtime import Model
from smc.runtime.generation import GenerationOptions
from smc.serve.errors import ApiError

MOST_CHOICES = 64
MOST_STOPS = 16


class _Request(BaseModel):
    """A base class: other fields that OpenAI's clients send are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(_Request):
    """include_usage: the last event of a stream says how many tokens there were."""

    include_usage: StrictBool = False


class SamplingRequest(_Request):
    """What completions and chats have in common. top_k, min_p and repetition_penalty are smc's additions."""

    model: StrictStr
    n: StrictInt | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: StrictStr | list[StrictStr] | None = Field(None, max_length=MOST_STOPS)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    seed: StrictInt | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    temperature: float | None = None
    top_p: float | None = None
    top_k: StrictInt | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def options(self, model: Model, index: int, logprobs: int | None, max_tokens: int | None) -> GenerationOptions:
        """Options of the `index`-th answer. Raises InputError for values out of range."""
        given = {
            name: getattr(self, name)
            for name in (
                "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
            )
        }  # fmt: skip
        return model.generation_options(
            max_tokens=max_tokens,
            stop=self.stop or (),
            logprobs=logprobs,
            seed=None if self.seed is None else (self.seed + index) % (1 << 64),
            logit_bias=self._bias() or None,
            **given,
        )

    def _bias(self) -> tuple[tuple[int, float], ...]:
        try:
            return tuple(sorted((int(token), bias) for token, bias in (self.logit_bias or {}).items()))
        except ValueError:
            raise ApiError(400, "logit_bias: its keys must be token ids", "logit_bias") from None


class CompletionRequest(SamplingRequest):
    """/v1/completions."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    max_tokens: StrictInt | None = Field(16, ge=0)
    logprobs: StrictInt | None = Field(None, ge=0, le=20)
    echo: StrictBool | None = None
    best_of: StrictInt | None = None
    suffix: StrictStr | None = None

    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts; each gets answers of its own."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise ApiError(400, "prompt must not be empty", "prompt")
        return [prompt] if isinstance(prompt[0], int) else prompt

    def check(self) -> None:
        """Raise ApiError for parameters that smc does not support."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(400, "best_of: smc does not rank answers; leave it out and use n", "best_of")
        if self.suffix:
            raise ApiError(400, "suffix: smc can't insert text, only continue it; leave suffix out", "suffix")


class TextPart(_Request):
    """A part of a message; it must be text."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(BaseModel):
    """A message; the chat template gets all its other fields, too."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: StrictStr | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message for a chat template: its content is text."""
        content = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content or ""}
        for name in ("name", "tool_call_id"):
            if name in (self.model_extra or {}):
                message[name] = (self.model_extra or {})[name]
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


class ResponseFormat(_Request):
    """The required form of an answer."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: dict[str, Any] | None = None
    regex: StrictStr | None = None
    grammar: StrictStr | None = None


class ChatRequest(SamplingRequest):
    """/v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: StrictInt | None = Field(None, ge=0)
    max_completion_tokens: StrictInt | None = Field(None, ge=0)
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer; None: until the context is full."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class EmbeddingRequest(_Request):
    """/v1/embeddings."""

    model: StrictStr
    input: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None

    def inputs(self) -> Sequence[str | list[int]]:
        """The texts; each gets an embedding."""
        if isinstance(self.input, str):
            return [self.input]
        if not self.input:
            raise ApiError(400, "input must not be empty", "input")
        return [self.input] if isinstance(self.input[0], int) else self.input
