"""Ollama's endpoints, which many programs use: generate, chat, tags, show, version, ps, embed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from smc.distribution import VERSION
from smc.runtime.generation import GenerationOptions
from smc.serve.errors import ApiError, OllamaErrorAnswer, also_streams, as_api_error, documented
from smc.serve.models import Models
from smc.serve.scheduler import Text
from smc.serve.served import ServedModel
from smc.structured.answer_form import plain_form, tools_form
from smc.structured.grammar import ANY_JSON, Grammar

Answer = dict[str, Any]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class OllamaOptions(_Request):
    """`options` of a request, with Ollama's names; those about memory and machines are ignored."""

    num_predict: StrictInt | None = None
    temperature: float | None = None
    top_k: StrictInt | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None

    def generation(self, served: ServedModel) -> GenerationOptions:
        """The same as options of a text; num_predict below 0: until the context is full."""
        most = self.num_predict
        return served.model.generation_options(
            max_tokens=None if most is None or most < 0 else most,
            stop=self.stop or (),
            seed=None if self.seed is None else self.seed % (1 << 64),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )


class GenerateRequest(_Request):
    """/api/generate. raw: without the chat template. context: tokens of an earlier answer, which this request
    continues."""

    model: StrictStr
    prompt: StrictStr = ""
    system: StrictStr | None = None
    raw: StrictBool = False
    stream: StrictBool = True
    context: list[StrictInt] | None = None
    format: StrictStr | dict[str, Any] | None = None
    options: OllamaOptions = Field(default_factory=OllamaOptions)


class OllamaMessage(BaseModel):
    """A message; one with images is refused."""

    model_config = ConfigDict(extra="allow")
    role: StrictStr
    content: StrictStr = ""
    images: list[Any] | None = None


class ChatRequest(_Request):
    """/api/chat."""

    model: StrictStr
    messages: list[OllamaMessage] = Field(default_factory=list)
    stream: StrictBool = True
    format: StrictStr | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    options: OllamaOptions = Field(default_factory=OllamaOptions)


class ShowRequest(_Request):
    """/api/show; older clients say name."""

    model: StrictStr = ""
    name: StrictStr = ""


class EmbedRequest(_Request):
    """/api/embed."""

    model: StrictStr
    input: StrictStr | list[StrictStr]


def ollama_router(models: Models) -> APIRouter:
    """The endpoints under /api."""
    router = APIRouter(prefix="/api", responses=documented(OllamaErrorAnswer))
    streams = also_streams("application/x-ndjson")

    @router.get("/version")
    async def version() -> Answer:
        return {"version": VERSION}

    @router.get("/tags")
    @router.get("/ps")
    async def tags() -> Answer:
        return {"models": [_about(served) for served in models.all()]}

    @router.post("/show")
    async def show(body: ShowRequest) -> Answer:
        return _details(models.find(body.model or body.name))

    @router.post("/generate", responses=streams)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        served = models.find(body.model)
        if not body.prompt and not body.context:  # Ollama's clients load a model by an empty request
            return JSONResponse(_line(served, {"response": "", "done": True, "done_reason": "load"}))
        chats = not body.raw and body.context is None and served.model.has_chat_template
        if chats:
            system = [{"role": "system", "content": body.system}] if body.system else []
            prompt = served.model.apply_chat_template([*system, {"role": "user", "content": body.prompt}])
        else:
            prompt = [*(body.context or ()), *served.model.encode(body.prompt, add_special_tokens=not body.context)]
        grammar = _grammar(body.format)
        constraint = None if grammar is None else (await served.constraints(grammar, 1))[0]
        tokens = served.model.prompt_tokens(prompt)
        text = served.prepare(tokens, body.options.generation(served), body.stream, constraint)

        def context(text: Text) -> Answer:
            return {"context": [*text.result.prompt, *text.result.tokens]}

        return await _answer(served, text, request, lambda piece: {"response": piece}, context)

    @router.post("/chat", responses=streams)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _chat(models.find(body.model), body, request)

    @router.post("/embed")
    async def embed(body: EmbedRequest) -> Answer:
        served = models.find(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        prompts = [served.model.prompt_tokens(text) for text in texts]
        vectors = [await asyncio.to_thread(served.embed, tokens) for tokens in prompts]
        return {"model": served.name, "embeddings": vectors, "prompt_eval_count": sum(map(len, prompts))}

    return router


async def _chat(served: ServedModel, body: ChatRequest, request: Request) -> Response:
    """The answer to /api/chat."""
    if any(message.images for message in body.messages):
        raise ApiError(400, "images: this server takes text only; leave images out")
    if not body.messages:
        message = {"role": "assistant", "content": ""}
        return JSONResponse(_line(served, {"message": message, "done": True, "done_reason": "load"}))
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    if body.tools:
        answer = tools_form(served.model, messages, body.tools)
    else:
        answer = plain_form(messages, _grammar(body.format))
    prompt = served.model.apply_chat_template(answer.messages, **answer.variables)
    constraint = None if answer.grammar is None else (await served.constraints(answer.grammar, 1))[0]
    options = replace(body.options.generation(served), show_special=bool(answer.functions))
    text = served.prepare(prompt, options, body.stream and not answer.functions, constraint)

    def shown(piece: str) -> Answer:
        said, calls = answer.parse(piece)
        functions = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        return {"message": {"role": "assistant", "content": said, **({"tool_calls": functions} if calls else {})}}

    return await _answer(served, text, request, shown, lambda text: {})


def _grammar(wanted: str | dict[str, Any] | None) -> Grammar | None:
    """The grammar of `format`: "json", or a JSON schema."""
    if wanted is None or wanted == "":
        return None
    if isinstance(wanted, str) and wanted != "json":
        raise ApiError(400, 'format must be "json" or a JSON schema')
    return ANY_JSON if isinstance(wanted, str) else Grammar.of_schema(wanted)


async def _answer(
    served: ServedModel,
    text: Text,
    request: Request,
    shown: Callable[[str], Answer],
    more: Callable[[Text], Answer],
) -> Response:
    """One object, or a line for every part of the text; the last one also has `more`."""
    served.submit([text])
    if text.streamed:
        return StreamingResponse(_lines(served, text, shown, more), media_type="application/x-ndjson")
    await served.finish([text], request)
    return JSONResponse(_line(served, {**shown(text.result.text), **_statistics(text), **more(text)}))


async def _lines(
    served: ServedModel, text: Text, shown: Callable[[str], Answer], more: Callable[[Text], Answer]
) -> AsyncIterator[bytes]:
    try:
        async for event in served.events(text):
            if event.piece or not event.done:
                yield _encoded(_line(served, {**shown(event.piece), "done": False}))
        yield _encoded(_line(served, {**shown(""), **_statistics(text), **more(text)}))
    except Exception as error:  # the status is sent: whatever fails is a line of the stream
        yield _encoded({"error": as_api_error(error).message})


def _encoded(value: Answer) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _line(served: ServedModel, values: Answer) -> Answer:
    return {"model": served.name, "created_at": _time(time.time()), **values}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _statistics(text: Text) -> Answer:
    """The timings of an answer, in nanoseconds."""
    timings, result = text.result.timings, text.result
    return {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": int(1e9 * (time.perf_counter() - text.submitted)) if text.submitted else 0,
        "load_duration": 0,
        "prompt_eval_count": len(result.prompt),
        "prompt_eval_duration": int(1e9 * timings.prompt_seconds),
        "eval_count": len(result.tokens),
        "eval_duration": int(1e9 * timings.decode_seconds),
    }


def _about(served: ServedModel) -> Answer:
    manifest = served.model.artifact.manifest
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": _time(served.created),
        "size": served.path.stat().st_size,
        "digest": manifest.weights.sha256,
        "details": {
            "format": "smc",
            "family": manifest.architecture or "",
            "parameter_size": f"{(manifest.parameters or 0) / 1e6:.1f}M",
            "quantization_level": f"{manifest.bits_per_weight or 0:.2f} bits per weight",
        },
    }


def _details(served: ServedModel) -> Answer:
    manifest = served.model.artifact.manifest
    return {
        "details": _about(served)["details"],
        "template": served.model.artifact.chat_template or "",
        "modified_at": _time(served.created),
        "model_info": {
            "general.architecture": manifest.architecture or "",
            "general.parameter_count": manifest.parameters or 0,
            f"{manifest.architecture or 'model'}.context_length": served.model.context_length,
            "smc.target": manifest.target,
            "smc.level": served.model.level,
            "smc.provenance": list(manifest.provenance),
            **({"smc.quality": str(manifest.quality)} if manifest.quality is not None else {}),
        },
        "capabilities": ["completion", "embedding"],
    }
