"""Training data as tokens: files cut into examples, and a batch for every step, which is always the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smc.errors import InputError
from smc.ir import ModelFacts
from smc.reference.text import read_text, read_tokens
from smc.training.denoise import corrupted

LEAST_SCORED = 16
"""A file with fewer tokens to predict than this is refused."""


@dataclass(frozen=True)
class Example:
    """A sequence, and which of its tokens count in the loss.

    tokens: int64 [n]. counts: float32 [n - 1], the weight of the prediction of token i + 1.
    """

    tokens: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Source:
    """The examples of one file, in groups: of one, or of the two that DPO compares."""

    groups: Sequence[tuple[Example, ...]]
    share: float

    @property
    def tokens(self) -> int:
        """All tokens of the file."""
        return sum(len(e.tokens) for group in self.groups for e in group)


class Batches:
    """The batch of any step; it follows from the step's number alone, so that an interrupted run continues exactly."""

    def __init__(self, sources: Sequence[Source], size: int, seed: int) -> None:
        """size: groups per batch."""
        self.sources, self.size, self.seed = sources, size, seed
        self._shares = torch.tensor([source.share for source in sources], dtype=torch.float64)
        self._orders: dict[tuple[int, int], Tensor] = {}
        self._taken = 0, [0] * len(sources)  # a step, and how many groups of each file earlier steps took

    def __getitem__(self, step: int) -> list[tuple[Example, ...]]:
        """The groups of a step, drawn from the files by their shares. Each round takes all groups of a file in random
        order."""
        if len(self.sources) == 1:
            return [self._take(0, step * self.size + i) for i in range(self.size)]
        known, counts = self._taken if self._taken[0] <= step else (0, [0] * len(self.sources))
        counts = list(counts)
        for earlier in range(known, step):
            for source in self._drawn(earlier):
                counts[source] += 1
        self._taken, taken = (step, list(counts)), []
        for source in self._drawn(step):
            taken.append(self._take(source, counts[source]))
            counts[source] += 1
        return taken

    def _drawn(self, step: int) -> list[int]:
        """The file of each group of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn: list[int] = torch.multinomial(self._shares, self.size, True, generator=generator).tolist()
        return drawn

    def _take(self, source: int, index: int) -> tuple[Example, ...]:
        groups = self.sources[source].groups
        epoch, place = divmod(index, len(groups))
        key = (source, epoch)
        if key not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 7919 + source * 101 + epoch)
            self._orders[key] = torch.randperm(len(groups), generator=generator)
        return groups[int(self._orders[key][place])]


def read_source(path: Path, objective: str, facts: ModelFacts, window: int, seed: int) -> Source:
    """The examples of a file; its share is its number of tokens. InputError if they can't be used for training."""
    if objective in ("text", "denoise"):
        examples: list[tuple[Example, ...]] = [(example,) for example in _windows(path, objective, facts, window, seed)]
    else:
        read = {"chat": _chat, "completion": _completion, "preference": _preference}[objective]
        examples = list(_lines(path, read, facts, window))
    if sum(example.counts.sum().item() for group in examples for example in group) < LEAST_SCORED:
        raise InputError(
            f"{path} is too short for training: a window has {window} tokens; give a longer text or a smaller window"
        )
    return Source(examples, float(sum(len(e.tokens) for group in examples for e in group)))


def _windows(path: Path, objective: str, facts: ModelFacts, window: int, seed: int) -> Iterator[Example]:
    """Consecutive windows of a text, corrupted by the denoisers where the objective is `denoise`."""
    tokens = torch.tensor(read_tokens(path, facts.tokenizer, facts.vocab_size), dtype=torch.int64)
    for index, start in enumerate(range(0, len(tokens) - window + 1, window)):
        whole = tokens[start : start + window]
        if objective == "text":
            yield Example(whole, torch.ones(window - 1))
        else:
            yield Example(*corrupted(whole, _tokenizer(facts, path), seed + index))


def _tokenizer(facts: ModelFacts, path: Path) -> Any:
    from tokenizers import Tokenizer

    if facts.tokenizer is None:
        raise InputError(f"{path} can't be read: the model has no tokenizer")
    return Tokenizer.from_str(facts.tokenizer)


def _lines(path: Path, read: Any, facts: ModelFacts, window: int) -> Iterator[tuple[Example, ...]]:
    """The examples of a JSONL file; examples longer than a window are cut at the end."""
    reader = read(facts, _tokenizer(facts, path))
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("the line must be a JSON object")
            group = reader(entry)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"the object lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"line {number} of {path} is no example for training: {what}") from None
        except InputError as error:
            raise InputError(f"line {number} of {path}: {error}") from None
        cut = tuple(Example(e.tokens[:window], e.counts[: window - 1]) for e in group)
        if all(example.counts.any() for example in cut):
            yield cut


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be a string that is not empty")
    return value


def _spans(parts: Sequence[tuple[Sequence[int], bool]]) -> Example:
    """Tokens in order, with whether they count in the loss."""
    tokens = [token for ids, _ in parts for token in ids]
    counts = [float(counts) for ids, counts in parts for _ in ids]
    return Example(torch.tensor(tokens, dtype=torch.int64), torch.tensor(counts[1:]))


def _completion(facts: ModelFacts, tokenizer: Any) -> Any:
    """{"prompt": …, "completion": …}, as plain text, followed by the token that ends a text, if the model has one."""

    def read(entry: dict[str, Any]) -> tuple[Example, ...]:
        prompt = tokenizer.encode(_text(entry, "prompt")).ids
        answer = tokenizer.encode(_text(entry, "completion"), add_special_tokens=False).ids
        return (_spans([(prompt, False), (_ended(answer, facts), True)]),)

    return read


def _ended(ids: list[int], facts: ModelFacts) -> list[int]:
    ends = facts.generation.eos_token_ids
    return ids if not ends or (ids and ids[-1] in ends) else [*ids, ends[0]]


def _template(facts: ModelFacts, tokenizer: Any) -> Any:
    from smc.runtime.chat import ChatTemplate

    if facts.chat_template is None:
        raise InputError(f"{facts.name} has no chat template: use objective=completion")
    return ChatTemplate(facts.chat_template, tokenizer, facts.special_tokens, facts.generation.eos_token_ids)


def _chat(facts: ModelFacts, tokenizer: Any) -> Any:
    """{"messages": [{"role": …, "content": …}, …]}: the assistant's tokens count, with the token that ends an
    answer."""
    template = _template(facts, tokenizer)

    def read(entry: dict[str, Any]) -> tuple[Example, ...]:
        messages = entry["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise ValueError("messages must be a list of objects with a role")
        parts: list[tuple[Sequence[int], bool]] = []
        done: list[int] = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                asked = template.encode(messages[:index], True)
                answered = template.encode(messages[: index + 1], False)
                if answered[: len(asked)] != asked or asked[: len(done)] != done:
                    raise ValueError(
                        "the chat template changes earlier messages, so answers can't be located: use "
                        "objective=completion"
                    )
                parts += [(asked[len(done) :], False), (answered[len(asked) :], True)]
                done = answered
        if not parts:
            raise ValueError("none of the messages is the assistant's")
        return (_spans(parts),)

    return read


def _preference(facts: ModelFacts, tokenizer: Any) -> Any:
    """{"prompt": …, "chosen": …, "rejected": …}: the first example is the chosen one. If the model has a chat template,
    it writes the examples."""
    template = _template(facts, tokenizer) if facts.chat_template is not None else None
    plain = _completion(facts, tokenizer)

    def read(entry: dict[str, Any]) -> tuple[Example, ...]:
        prompt, found = _text(entry, "prompt"), []
        for key in ("chosen", "rejected"):
            answer = _text(entry, key)
            if template is None:
                found += plain({"prompt": prompt, "completion": answer})
                continue
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            asked, whole = template.encode(messages[:1], True), template.encode(messages, False)
            found.append(_spans([(asked, False), (whole[len(asked) :], True)]))
        return tuple(found)

    return read
