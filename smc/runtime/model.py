"""`Model`: an artifact opened for running — logits, sequences, text, chat."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping
from collections.abc import Sequence as Items
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smc.errors import InputError, Notice, blamed_on
from smc.runtime.artifact import Artifact, read_artifact
from smc.runtime.async_stream import stream_in_thread
from smc.runtime.binding import Engine
from smc.runtime.chat import ChatTemplate, Message
from smc.runtime.generation import Constraint, GenerationOptions, GenerationResult, TokenLogprob
from smc.runtime.interface import TOKEN, WANT_ARGMAX, WANT_HIDDEN, WANT_LOGITS
from smc.runtime.sampling import SamplingOptions, check_finite
from smc.runtime.slots import SlotQueue
from smc.runtime.speculation import Drafter
from smc.runtime.text_stream import TextStream

_EMBED_TOKENS = 256
"""Tokens per step of a text to embed, so that other texts do not wait long."""

_TEXT_CHUNK = 64
"""Tokens per step of a text whose logits are all needed: with a large vocabulary they take much memory."""


class Sequence:
    """One text in the KV cache. `Model.new_sequence` makes it; drop it to free its slot (or use `with`).

    tokens: those that the cache holds.
    """

    def __init__(self, model: Model, slot: int, tokens: list[int]) -> None:
        self._model = model
        self._slot: int | None = slot
        self.tokens = tokens

    @property
    def slot(self) -> int:
        """The engine's number for it; ValueError after `drop`."""
        if self._slot is None:
            raise ValueError("the sequence was dropped")
        return self._slot

    @property
    def length(self) -> int:
        """The number of tokens that the cache holds."""
        return len(self.tokens)

    def extend(
        self,
        tokens: Items[int],
        logits: Literal["last", "all", "none"] = "last",
        out: NDArray[np.float32] | None = None,
        since: int | None = None,
    ) -> NDArray[np.float32]:
        """Run `tokens` after those of the sequence; returns the logits [rows, vocab] of the last one, of all, or of
        none.

        out: where to write them, contiguous float32 [rows, model.logits_stride]; the result is a view of it.
        since: which cancellations count, see `Engine.run`.
        Raises InputError for a token outside the vocabulary, and if the context is full.
        """
        batch = self._batch(tokens)
        if len(tokens):
            batch["flags"][{"last": slice(-1, None), "all": slice(None), "none": slice(0)}[logits]] = WANT_LOGITS
        rows = self._model.step(batch, out, since)
        self.tokens.extend(map(int, tokens))
        return rows

    def _batch(self, tokens: Items[int]) -> NDArray[np.void]:
        """Records of tokens after those of the sequence, which request no results yet."""
        batch = np.zeros(len(tokens), TOKEN)
        if len(tokens):
            batch["token"] = self._model.checked(tokens)
            batch["sequence"] = self.slot
            batch["index"] = batch["position"] = np.arange(self.length, self.length + len(tokens))
        return batch

    def next_token(self, tokens: Items[int], since: int | None = None) -> int:
        """Run `tokens`, at least one, after those of the sequence; returns the id of the last one's largest logit.

        Among equal logits the lowest id counts, as in numpy's argmax. If the program has an argmax head, no logits are
        written.
        since: which cancellations count, see `Engine.run`. Raises InputError as `extend` does.
        """
        if not len(tokens):
            raise InputError("tokens is empty: give at least one token")
        if not self._model.finds_argmax:
            return int(np.argmax(self.extend(tokens, since=since)[0]))
        batch = self._batch(tokens)
        batch["flags"][-1] = WANT_ARGMAX
        [argmax] = self._model.engine.step(batch, since=since)
        self.tokens.extend(map(int, tokens))
        return int(argmax)

    def next_tokens(self, tokens: Items[int], since: int | None = None) -> list[int]:
        """As `next_token`, but for all `tokens`."""
        if not self._model.finds_argmax:
            return [int(np.argmax(row)) for row in self.extend(tokens, "all", since=since)]
        batch = self._batch(tokens)
        batch["flags"] = WANT_ARGMAX
        argmax = self._model.engine.step(batch, since=since)
        self.tokens.extend(map(int, tokens))
        return [int(token) for token in argmax]

    def hidden_states(self, tokens: Items[int], since: int | None = None) -> NDArray[np.float32]:
        """Run `tokens` after those of the sequence; returns the last layer's states, float32 [len(tokens),
        hidden_size].

        since: which cancellations count, see `Engine.run`. Raises InputError as `extend` does.
        """
        batch = self._batch(tokens)
        batch["flags"] = WANT_HIDDEN
        states = np.empty((len(tokens), self._model.engine.facts.hidden_size), np.float32)
        self._model.engine.step(batch, hidden=states, since=since)
        self.tokens.extend(map(int, tokens))
        return states

    def run_prompt(self, tokens: Items[int], count: int, since: int | None = None) -> list[TokenLogprob]:
        """Run all of the prompt `tokens` except the last one in this empty sequence. Returns the log-probabilities of
        all except the first one, with the `count` likeliest tokens at each place.

        since: which cancellations count, see `Engine.run`. Raises InputError as `extend` does, and for logits that are
        NaN or infinite.
        """
        entries: list[TokenLogprob] = []
        for begin in range(0, len(tokens) - 1, _TEXT_CHUNK):
            chunk = tokens[begin : min(begin + _TEXT_CHUNK, len(tokens) - 1)]
            rows = self.extend(chunk, "all", since=since)
            check_finite(rows)
            next_tokens = tokens[begin + 1 : begin + 1 + len(chunk)]
            entries += [TokenLogprob.of(token, row, count) for token, row in zip(next_tokens, rows, strict=True)]
        return entries

    def keep_common(self, tokens: Items[int]) -> int:
        """Truncate to the common beginning of the sequence and `tokens`; returns its length."""
        common = 0
        for mine, wanted in zip(self.tokens, tokens, strict=False):
            if mine != wanted:
                break
            common += 1
        if common < self.length:
            self.truncate(common)
        return common

    def fork(self) -> Sequence:
        """A second sequence with the same tokens; the two share memory."""
        return Sequence(self._model, self._model.engine.sequence_fork(self.slot), list(self.tokens))

    def truncate(self, length: int) -> None:
        """Forget what lies behind the first `length` tokens."""
        self._model.engine.sequence_truncate(self.slot, length)
        del self.tokens[length:]

    def drop(self) -> None:
        """Free the slot; a second call, or one after the model was closed, does nothing."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._model.slots.free(slot)

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *exception: object) -> None:
        self.drop()


class Model:
    """An opened artifact. Use it as a context manager or close it.

    Several threads may use it. Their steps run one after the other; `generate`, `stream` and `logits` wait for a free
    sequence while texts of other threads have all of them (`sequences` is their number). `close` ends the calls of
    other threads with a `ClosedError`, `engine.cancel` with a `CancelledError`.

    path: the artifact. context_length: tokens that a sequence may hold; 0: as many as the model was trained for.
    threads: 0: one per CPU that this process may use. kv_dtype: "f16", "f32" or "i8", of the KV cache.
    level: force a feature level of the artifact; None: the best for this CPU. sequences: how many may exist at once.
    Raises InputError if the file is not an artifact for this machine, is damaged, or an option has a wrong value.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        context_length: int = 0,
        threads: int = 0,
        kv_dtype: str = "f16",
        level: str | None = None,
        sequences: int = 1,
    ) -> None:
        self.artifact: Artifact = read_artifact(path)
        self.engine = Engine(
            path,
            self.artifact.program,
            context_length=context_length,
            sequences=sequences,
            kv_dtype=kv_dtype,
            threads=threads,
            level=level,
        )
        self.slots = SlotQueue(self.engine)
        facts = self.engine.facts
        self.vocab_size: int = facts.vocab_size
        self.context_length: int = facts.context_length
        trained = self.artifact.manifest.context_length
        if self.context_length > trained:
            text = f"a context of {self.context_length} tokens is longer than the {trained} that the model was"
            warnings.warn(f"{text} trained for: text after these may make no sense", Notice, stacklevel=2)
        self.logits_stride: int = facts.logits_stride
        self.threads: int = facts.threads
        self.finds_argmax = bool(facts.finds_argmax)
        self.level: str = facts.level.decode()

    # ---- numbers

    def logits(self, tokens: Items[int]) -> NDArray[np.float32]:
        """The logits of every token, float32 [len(tokens), vocab]. The tokens are a text of their own, which takes a
        sequence."""
        since = self.engine.cancels
        with self.text_sequence(since) as sequence:
            return sequence.extend(tokens, logits="all", since=since)

    def embed(self, text: str | Items[int], normalize: bool = True) -> NDArray[np.float32]:
        """The mean of the last layer's hidden states (after the final norm) over all tokens: float32 [hidden_size].

        normalize: to length 1. The text takes a sequence. Raises InputError for a text that is empty or longer than the
        context.
        """
        tokens = self.prompt_tokens(text)
        if not tokens:
            raise InputError("the text is empty: give at least one token")
        total, since = np.zeros(self.engine.facts.hidden_size, np.float64), self.engine.cancels
        with self.text_sequence(since) as sequence:
            for begin in range(0, len(tokens), _EMBED_TOKENS):
                total += sequence.hidden_states(tokens[begin : begin + _EMBED_TOKENS], since).sum(0, dtype=np.float64)
        mean = total / len(tokens)
        if normalize:
            mean /= max(float(np.linalg.norm(mean)), 1e-30)
        return mean.astype(np.float32)

    def prompt_logprobs(self, tokens: Items[int], count: int) -> list[TokenLogprob]:
        """The log-probabilities of a prompt's tokens except the first, which nothing predicts, with the `count`
        likeliest tokens at each place. The prompt takes a sequence. Raises InputError if it is longer than the
        context."""
        since = self.engine.cancels
        with self.text_sequence(since) as sequence:
            return sequence.run_prompt(tokens, count, since)

    def new_sequence(self) -> Sequence:
        """An empty sequence. Raises InputError if all slots are taken (see `sequences`)."""
        return Sequence(self, self.engine.sequence_create(), [])

    def text_sequence(self, since: int) -> Sequence:
        """An empty sequence for one text; if all slots are taken, this waits for one that another thread's text has.

        since: which cancellations end the waiting, see `Engine.run`. Raises as `SlotQueue.take` does.
        """
        return Sequence(self, self.slots.take(since), [])

    def step(
        self, batch: NDArray[np.void], out: NDArray[np.float32] | None = None, since: int | None = None
    ) -> NDArray[np.float32]:
        """Run a batch of `interface.TOKEN` records, of one or several sequences (see engine.h).

        Returns the logits [tokens that request them, vocab], in batch order: a view of `out` [rows, logits_stride], or
        of a new buffer. Sequence objects do not count tokens that are run this way.
        since: which cancellations count, see `Engine.run`.
        """
        rows = int(np.count_nonzero(batch["flags"] & WANT_LOGITS))
        if out is None:
            out = self.logits_buffer(rows)
        if len(batch):
            self.engine.step(batch, logits=out, since=since)
        return out[:, : self.vocab_size]

    def logits_buffer(self, rows: int) -> NDArray[np.float32]:
        """An uninitialized float32 [rows, logits_stride], 64-byte aligned, to which the engine writes without a
        copy."""
        size = rows * self.logits_stride
        memory = np.empty(size + 16, np.float32)
        start = -memory.ctypes.data % 64 // 4
        return memory[start : start + size].reshape(rows, self.logits_stride)

    def checked(self, tokens: Items[int]) -> NDArray[np.int32]:
        """`tokens` as an array; InputError for one outside the vocabulary."""
        array = np.asarray(tokens, None if len(tokens) else np.int32)  # numpy would make floats of an empty list
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError("tokens must be a list of whole numbers")
        wrong = array[(array < 0) | (array >= self.vocab_size)]
        if wrong.size:
            raise InputError(f"token {wrong[0]} is not in the vocabulary of {self.vocab_size} tokens")
        return array.astype(np.int32)

    # ---- text

    @property
    def has_tokenizer(self) -> bool:
        """Whether the artifact has a tokenizer."""
        return self.artifact.tokenizer is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether the artifact has a chat template (and a tokenizer for it)."""
        return self.artifact.chat_template is not None and self.has_tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises InputError if the artifact has none or a broken one."""
        if self.artifact.tokenizer is None:
            raise InputError(f"{self.artifact.path} has no tokenizer: give tokens instead of text")
        with blamed_on(f"{self.artifact.path} is damaged: its tokenizer can't be read"):
            tokenizer = Tokenizer.from_str(self.artifact.tokenizer)
        # Some files keep settings of their training, which transformers also ignores.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises InputError if the artifact has none."""
        if self.artifact.chat_template is None:
            raise InputError(f"{self.artifact.path} has no chat template: give a plain prompt (--raw)")
        named = self.artifact.manifest.special_tokens
        return ChatTemplate(self.artifact.chat_template, self.tokenizer, named, self.eos_token_ids)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of `text`. add_special_tokens: with those that the tokenizer adds to a text (such as BOS).

        The texts of special tokens in `text` are parsed as such: use this for prompts, not for text of users.
        """
        with blamed_on(f"the tokenizer of {self.artifact.path} can't encode this text"):
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Items[int], skip_special_tokens: bool = True) -> str:
        """Text of `tokens`."""
        with blamed_on(f"the tokenizer of {self.artifact.path} can't decode these tokens"):
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, messages: Items[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The prompt of a conversation as tokens; see `ChatTemplate.encode`."""
        return self.chat_template.encode(messages, add_generation_prompt, **variables)

    # ---- generation

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        return frozenset(self.artifact.manifest.generation.eos_token_ids)

    def stream(
        self,
        prompt: str | Items[int],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Items[str] = (),
        logprobs: int | None = None,
        show_special: bool = False,
        sequence: Sequence | None = None,
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
    ) -> TextStream:
        """Generate text: an iterator of str, whose `result` has everything else.

        prompt: text, or tokens (`apply_chat_template` makes those of a conversation).
        max_tokens, stop, logprobs, show_special: see `GenerationOptions`. temperature … seed: see `SamplingOptions`;
        for those that are None the checkpoint's generation config counts, else decoding is greedy. logit_bias: numbers
        by token. sequence: continue it; tokens that it has in common with the prompt's beginning are not run again.
        constraint: which tokens are allowed. drafter: guesses tokens, which is faster and changes no token. Raises
        InputError at once for a prompt that does not fit, or an option out of range.
        """
        options = self.generation_options(
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            show_special=show_special,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=tuple(sorted((logit_bias or {}).items())),
            seed=seed,
        )
        return TextStream(self, self.prompt_tokens(prompt), options, sequence, constraint, drafter)

    def chat(self, messages: Items[Message], **options: Any) -> TextStream:
        """Answer a conversation with the model's chat template; options are those of `stream`."""
        return self.stream(self.apply_chat_template(messages), **options)

    def stream_async(self, prompt: str | Items[int] | Items[Message], **options: Any) -> AsyncIterator[str]:
        """As `stream`, or as `chat` if `prompt` is messages, for `async for`; the engine runs in a thread."""
        is_chat = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
        make: Any = self.chat if is_chat else self.stream
        return stream_in_thread(lambda: make(prompt, **options))

    def prompt_tokens(self, prompt: str | Items[int]) -> list[int]:
        """A prompt as tokens; InputError for a token outside the vocabulary."""
        return self.encode(prompt) if isinstance(prompt, str) else self.checked(prompt).tolist()

    def generation_options(
        self,
        *,
        max_tokens: int | None = None,
        stop: str | Items[str] = (),
        logprobs: int | None = None,
        show_special: bool = False,
        **sampling: Any,
    ) -> GenerationOptions:
        """Options of a text of this model; sampling: those of `SamplingOptions`.

        For those that are None the checkpoint's generation config counts, else decoding is greedy. Raises InputError
        for values out of range.
        """
        chosen = {name: value for name, value in sampling.items() if value is not None}
        options = GenerationOptions(
            sampling=SamplingOptions(**{**self.artifact.manifest.generation.sampling(), **chosen}),
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            eos_token_ids=self.eos_token_ids,
            logprobs=logprobs,
            show_special=show_special,
        )
        self.checked([token for token, _ in options.sampling.logit_bias])
        if options.stop and not self.has_tokenizer:
            raise InputError(f"{self.artifact.path} has no tokenizer, so it can't look for stop texts")
        return options

    def generate(self, prompt: str | Items[int], **options: Any) -> GenerationResult:
        """Generate text to its end; options are those of `stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    # ---- life

    @property
    def closed(self) -> bool:
        return self.engine.closed

    def close(self) -> None:
        """Free the memory and the threads; a second call does nothing."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load(path: str | Path, **options: Any) -> Model:
    """Open an artifact for running; options are those of `Model`."""
    return Model(path, **options)
