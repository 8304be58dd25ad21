"""OpenAI's endpoints: models, completions, chats, embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from smc.runtime import openai_form as form
from smc.runtime.generation import Constraint
from smc.serve.errors import ApiError, ErrorAnswer, also_streams, as_api_error, body_of, documented
from smc.serve.models import Models
from smc.serve.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest
from smc.serve.scheduler import Text
from smc.serve.served import ServedModel
from smc.structured.answer_form import AnswerForm, chat_form
from smc.structured.tool_calls import ToolCall

Answer = dict[str, Any]

DONE = b"data: [DONE]\n\n"


def openai_router(models: Models) -> APIRouter:
    """The endpoints under /v1."""
    router = APIRouter(prefix="/v1", responses=documented(ErrorAnswer))
    streams = also_streams("text/event-stream")

    @router.get("/models")
    async def list_models() -> Answer:
        return {"object": "list", "data": [_about(served) for served in models.all()]}

    @router.get("/models/{name:path}")
    async def show_model(name: str) -> Answer:
        return _about(models.find(name))

    @router.post("/completions", responses=streams)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _complete(models.find(body.model), body, request)

    @router.post("/chat/completions", responses=streams)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _chat(models.find(body.model), body, request)

    @router.post("/embeddings")
    async def embed(body: EmbeddingRequest) -> Answer:
        return await _embed(models.find(body.model), body)

    return router


def _about(served: ServedModel) -> Answer:
    quality = served.model.artifact.manifest.quality
    known = {} if quality is None else {"quality": str(quality)}
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "smc", **known}


# ---- completions


async def _complete(served: ServedModel, body: CompletionRequest, request: Request) -> Response:
    body.check()
    choices = body.n or 1
    prompts = [served.model.prompt_tokens(prompt) for prompt in body.prompts()]
    texts = [
        served.prepare(tokens, body.options(served.model, index, body.logprobs, body.max_tokens), bool(body.stream))
        for tokens in prompts
        for index in range(choices)
    ]
    echoes = [echo for tokens in prompts for echo in [await _echo(served, body, tokens)] * choices]
    served.submit(texts)
    head = form.new_answer("text_completion", served.name)

    def piece(index: int, text: Text, shown: str, sent: _Sent, reason: str | None) -> Answer:
        echo, logprobs, entries = echoes[index], None, text.result.logprobs
        if entries is not None:
            offset = len(echo.text) + sent.characters
            logprobs = form.completion_logprobs(entries[sent.entries :], served.texts, offset)
        if sent.events == 0:
            shown, logprobs = echo.text + shown, form.joined_logprobs(echo.logprobs, logprobs)
        return form.completion_choice(index, shown, logprobs, reason)

    if body.stream:
        return _streamed(_pieces(served, texts, head, piece, _wants_usage(body)))
    await served.finish(texts, request)
    answers = [piece(index, text, text.result.text, _Sent(), _reason(text)) for index, text in enumerate(texts)]
    return JSONResponse({**head, "choices": answers, "usage": _usage(texts, choices)})


@dataclass(frozen=True)
class _Echo:
    """The part of an answer that repeats the prompt."""

    text: str = ""
    logprobs: Answer | None = None


async def _echo(served: ServedModel, body: CompletionRequest, tokens: list[int]) -> _Echo:
    if not body.echo:
        return _Echo()
    text = served.model.decode(tokens)
    if body.logprobs is None:
        return _Echo(text)
    entries = await asyncio.to_thread(served.prompt_logprobs, tokens, body.logprobs)
    return _Echo(text, form.echoed_logprobs(tokens[0], entries, served.texts))


# ---- chats


async def _chat(served: ServedModel, body: ChatRequest, request: Request) -> Response:
    form_of_answer = _form(served, body)
    prompt = served.model.apply_chat_template(
        form_of_answer.messages, **{**(body.chat_template_kwargs or {}), **form_of_answer.variables}
    )
    count, choices = (body.top_logprobs or 0) if body.logprobs else None, body.n or 1
    constraints: Sequence[Constraint | None] = [None] * choices
    if form_of_answer.grammar is not None:
        constraints = await served.constraints(form_of_answer.grammar, choices)
    shows_special = bool(form_of_answer.functions)
    texts = [
        served.prepare(
            prompt,
            replace(body.options(served.model, index, count, body.most_tokens), show_special=shows_special),
            bool(body.stream),
            constraints[index],
        )
        for index in range(choices)
    ]
    served.submit(texts)

    def logprobs(text: Text, since: int) -> Answer | None:
        entries = text.result.logprobs
        return None if entries is None else form.chat_logprobs(entries[since:], served.texts)

    if body.stream:
        filters = [form_of_answer.filter() for _ in texts]

        def piece(index: int, text: Text, shown: str, sent: _Sent, reason: str | None) -> Answer:
            calls: list[ToolCall] = []
            call_filter = filters[index]
            if call_filter is not None:
                shown = call_filter.push(shown)
                if reason is not None:
                    rest, calls = call_filter.end(text.result.text)
                    shown += rest
            delta: Answer = {"content": shown} if shown else {}
            if calls:
                delta["tool_calls"] = [call.as_openai(place) for place, call in enumerate(calls)]
            if sent.events == 0:
                delta["role"] = "assistant"
            return form.chat_piece(index, delta, logprobs(text, sent.entries), "tool_calls" if calls else reason)

        head = form.new_answer("chat.completion.chunk", served.name)
        return _streamed(_pieces(served, texts, head, piece, _wants_usage(body)))
    await served.finish(texts, request)
    answers = []
    for index, text in enumerate(texts):
        shown, calls = form_of_answer.parse(text.result.text)
        message: Answer = {"role": "assistant", "content": shown or None if calls else shown}
        if calls:
            message["tool_calls"] = [call.as_openai() for call in calls]
        answers.append(form.chat_choice(index, message, logprobs(text, 0), "tool_calls" if calls else _reason(text)))
    head = form.new_answer("chat.completion", served.name)
    return JSONResponse({**head, "choices": answers, "usage": _usage(texts, len(texts))})


def _form(served: ServedModel, body: ChatRequest) -> AnswerForm:
    messages = [message.for_template() for message in body.messages]
    wanted = body.response_format.model_dump() if body.response_format is not None else None
    parallel = body.parallel_tool_calls is not False
    return chat_form(served.model, messages, body.tools, body.tool_choice, wanted, parallel)


# ---- streams


def _wants_usage(body: CompletionRequest | ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


@dataclass(frozen=True)
class _Sent:
    """What a stream has sent of a text: events, log-probabilities of tokens, characters."""

    events: int = 0
    entries: int = 0
    characters: int = 0


Piece = Callable[[int, Text, str, _Sent, str | None], Answer]
"""Makes a choice of its index, the text, the part to show, what was sent before, and the finish reason."""


async def _pieces(
    served: ServedModel, texts: Sequence[Text], head: Answer, piece: Piece, with_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events of all texts as they come; an error is an event, too."""
    queue: asyncio.Queue[tuple[int, str, bool] | Exception] = asyncio.Queue()

    async def follow(index: int, text: Text) -> None:
        try:
            async for event in served.events(text):
                queue.put_nowait((index, event.piece, event.done))
        except Exception as error:  # the status is sent: whatever fails is an event of the stream
            queue.put_nowait(error)

    followers = [asyncio.ensure_future(follow(index, text)) for index, text in enumerate(texts)]
    sent, left = [_Sent()] * len(texts), len(texts)
    usage: Answer = {"usage": None} if with_usage else {}
    try:
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                yield _event(body_of(as_api_error(item)))
                return
            index, shown, done = item
            text = texts[index]
            reason = _reason(text) if done else None
            choice, before = piece(index, text, shown, sent[index], reason), sent[index]
            entries = len(text.result.logprobs or ())
            sent[index] = _Sent(before.events + 1, entries, before.characters + len(shown))
            left -= done
            yield _event({**head, "choices": [choice], **usage})
        if with_usage:
            yield _event({**head, "choices": [], "usage": _usage(texts, len(texts))})
        yield DONE
    finally:
        for follower in followers:
            follower.cancel()
        for text in texts:
            text.cancel()


def _event(value: Answer) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _streamed(pieces: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _reason(text: Text) -> str:
    return form.FINISH_REASONS[text.result.finish_reason]


def _usage(texts: Sequence[Text], choices: int) -> Answer:
    """The usage of all texts; each prompt counts once, however many choices it has."""
    parts = [form.usage([text.result for text in texts[i : i + choices]]) for i in range(0, len(texts), choices)]
    total = {name: sum(part[name] for part in parts) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    cached = sum(part["prompt_tokens_details"]["cached_tokens"] for part in parts)
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}


# ---- embeddings


async def _embed(served: ServedModel, body: EmbeddingRequest) -> Answer:
    if body.dimensions is not None and body.dimensions != served.model.engine.facts.hidden_size:
        size = served.model.engine.facts.hidden_size
        raise ApiError(
            400,
            (f"dimensions: this model's embeddings have {size} and can't be shortened; leave dimensions out"),
            "dimensions",
        )
    prompts = [served.model.prompt_tokens(text) for text in body.inputs()]
    data = []
    for index, tokens in enumerate(prompts):
        vector: Any = await asyncio.to_thread(served.embed, tokens)
        if body.encoding_format == "base64":
            vector = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}
