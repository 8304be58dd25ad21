"""Answers in the form of OpenAI's API, as dicts: completions and chats, whole and as events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from smc.runtime.generation import GenerationResult, TokenLogprob
from smc.runtime.token_texts import TokenTexts

Answer = dict[str, Any]

FINISH_REASONS = {"stop": "stop", "length": "length", "interrupted": "stop"}


def new_answer(kind: str, model: str) -> Answer:
    """The head of an answer of a kind: "text_completion", "chat.completion" or "chat.completion.chunk"."""
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def usage(results: Sequence[GenerationResult]) -> Answer:
    """Tokens of one prompt and of all its answers."""
    prompt = len(results[0].prompt)
    generated = sum(len(result.tokens) for result in results)
    cached = max(result.timings.cached_tokens for result in results[:1])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def completion_logprobs(entries: Sequence[TokenLogprob], texts: TokenTexts, offset: int) -> Answer:
    """The `logprobs` of a completion. offset: where its first token's text begins."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(texts.text_of(entry.token))
    return {
        "tokens": [texts.name_of(entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{texts.name_of(token): logprob for token, logprob in entry.top} for entry in entries],
        "text_offset": offsets,
    }


def echoed_logprobs(first: int, others: Sequence[TokenLogprob], texts: TokenTexts) -> Answer:
    """The `logprobs` of an echoed prompt. Its `first` token has None, because nothing predicts it."""
    usual = completion_logprobs(others, texts, len(texts.text_of(first)))
    head = {"tokens": texts.name_of(first), "token_logprobs": None, "top_logprobs": None, "text_offset": 0}
    return {name: [head[name], *values] for name, values in usual.items()}


def joined_logprobs(before: Answer | None, after: Answer | None) -> Answer | None:
    """The `logprobs` of a prompt and of its continuation as one; None if there are none."""
    if before is None or after is None:
        return before if after is None else after
    return {name: [*values, *after[name]] for name, values in before.items()}


def chat_logprobs(entries: Sequence[TokenLogprob], texts: TokenTexts) -> Answer:
    """The `logprobs` of a chat's answer."""

    def shown(token: int, logprob: float) -> Answer:
        return {"token": texts.text_of(token), "logprob": logprob, "bytes": list(texts.bytes_of(token))}

    content = [
        {**shown(entry.token, entry.logprob), "top_logprobs": [shown(token, logprob) for token, logprob in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_choice(index: int, text: str, logprobs: Answer | None, finish_reason: str | None) -> Answer:
    """A choice of a completion, or an event of one (finish_reason: None until the last)."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_choice(index: int, message: Answer, logprobs: Answer | None, finish_reason: str) -> Answer:
    """A choice of a chat."""
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_piece(index: int, delta: Answer, logprobs: Answer | None, finish_reason: str | None) -> Answer:
    """An event of a choice of a chat."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
