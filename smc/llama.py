"""`smc.Llama`: a model behind the interface of llama-cpp-python's class of that name.

Code for that package's text generation runs with another import. A GGUF file or a checkpoint is compiled into smc's
cache when it is first used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc.errors import InputError, Notice
from smc.model_cache import artifact_of
from smc.runtime import Model
from smc.runtime import openai_form as form
from smc.runtime.drafters import Drafters
from smc.runtime.generation import Constraint, GenerationResult
from smc.runtime.speculation import Drafter
from smc.runtime.text_stream import TextStream
from smc.runtime.token_texts import TokenTexts
from smc.structured.answer_form import AnswerForm, chat_form
from smc.structured.grammar import Grammar

if TYPE_CHECKING:
    from smc.structured.constraint import Grammars

IGNORED = frozenset(
    {
        "n_batch", "n_ubatch", "n_threads_batch", "use_mmap", "use_mlock", "verbose", "seed", "main_gpu", "split_mode",
        "tensor_split", "offload_kqv", "flash_attn", "last_n_tokens_size", "logits_all", "embedding", "vocab_only",
        "chat_format", "numa", "rope_freq_base", "rope_freq_scale", "mul_mat_q", "f16_kv",
    }
)  # fmt: skip
"""Options of llama-cpp-python's constructor that change no text here, or that the artifact determines."""

Answer = dict[str, Any]


class Llama:
    """A model with llama-cpp-python's interface: call it with a prompt, or use `create_chat_completion`.

    model_path: an artifact, a GGUF file or a checkpoint. n_ctx: most tokens of prompt and answer together; 0: as many
    as the model was trained for. n_threads: None: one per CPU. n_gpu_layers: has no effect on artifacts for CPUs, which
    a warning says. seed: for texts without one of their own. draft_model: what guesses tokens, which makes texts faster
    and changes none: "lookup", an n-gram model, or a smaller artifact. Raises InputError if the file can't be run or an
    option is unknown.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        n_ctx: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        seed: int | None = None,
        draft_model: str | None = None,
        **options: Any,
    ) -> None:
        if unknown := sorted(options.keys() - IGNORED):
            raise InputError(f"Llama has no option {unknown[0]!r}: leave it out")
        self.model_path = str(model_path)
        artifact = artifact_of(model_path)
        self.model = Model(artifact, context_length=n_ctx, threads=n_threads or 0, sequences=2)
        self._seed = None if seed in (None, -1, 0xFFFFFFFF) else seed
        self._grammars: Grammars | None = None
        self._drafters = Drafters(draft_model, self.model) if draft_model is not None else None
        self._drafter: Drafter | None = None
        self._sequence = self.model.new_sequence()  # its past is used again; the other sequence is for `embed`
        if n_gpu_layers and self.model.artifact.manifest.system != "CUDA":
            text = f"{artifact.name} is compiled for CPUs: n_gpu_layers={n_gpu_layers} has no effect"
            warnings.warn(text, Notice, stacklevel=2)

    # ---- text

    def __call__(self, prompt: str | Sequence[int], **options: Any) -> Any:
        """As `create_completion`."""
        return self.create_completion(prompt, **options)

    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        top_k: int = 40,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[str, float] | None = None,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stream: bool = False,
        model: str | None = None,
    ) -> Any:
        """Continue a prompt: an answer in OpenAI's form, or with stream=True an iterator over its parts.

        max_tokens: None or below 1: until the context is full. logprobs: how many of the likeliest tokens to report at
        each place. echo: the prompt is a part of the text, and its tokens have log-probabilities too. temperature …
        min_p: see `smc.runtime.sampling.SamplingOptions`; repeat_penalty is its repetition_penalty.
        """
        tokens = self.model.prompt_tokens(prompt)
        text_stream = self._stream(
            tokens,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            logprobs=logprobs,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            top_k=top_k,
            repetition_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
        )
        head = form.new_answer("text_completion", model or self.model_path)
        text = ""
        if echo or logprobs is not None:
            text = prompt if isinstance(prompt, str) else self.model.decode(tokens)
        echoed = self._echoed_logprobs(tokens, logprobs) if echo and logprobs is not None else None
        if stream:
            return self._completion_pieces(head, text_stream, text, echo, echoed)
        result = _run(text_stream)
        own = None
        if result.logprobs is not None:
            own = form.completion_logprobs(result.logprobs, self._texts, len(text))
        shown, reason = (text if echo else "") + result.text, form.FINISH_REASONS[result.finish_reason]
        choice = form.completion_choice(0, shown, form.joined_logprobs(echoed, own), reason)
        return {**head, "choices": [choice], "usage": form.usage([result])}

    def create_chat_completion(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        min_p: float = 0.05,
        top_k: int = 40,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[str, float] | None = None,
        logprobs: bool = False,
        top_logprobs: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        stream: bool = False,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        response_format: dict[str, Any] | None = None,
        model: str | None = None,
    ) -> Any:
        """Answer a conversation with the model's chat template; options are those of `create_completion`.

        logprobs: whether to report them; top_logprobs: how many of the likeliest tokens to report with them. tools,
        tool_choice, response_format: as in OpenAI's API; response_format may also be llama-cpp-python's, with a schema.
        """
        expected = chat_form(self.model, [dict(message) for message in messages], tools, tool_choice, response_format)
        text_stream = self._stream(
            self.model.apply_chat_template(expected.messages, **expected.variables),
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            logprobs=(top_logprobs or 0) if logprobs else None,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            top_k=top_k,
            repetition_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            constraint=self._constraint(expected.grammar) if expected.grammar is not None else None,
            show_special=bool(expected.functions),
        )
        name = model or self.model_path
        if stream:
            return self._chat_pieces(form.new_answer("chat.completion.chunk", name), text_stream, expected)
        result = _run(text_stream)
        own = form.chat_logprobs(result.logprobs, self._texts) if result.logprobs is not None else None
        shown, calls = expected.parse(result.text)
        message: Answer = {"role": "assistant", "content": shown or None if calls else shown}
        if calls:
            message["tool_calls"] = [call.as_openai() for call in calls]
        reason = "tool_calls" if calls else form.FINISH_REASONS[result.finish_reason]
        choice = form.chat_choice(0, message, own, reason)
        return {**form.new_answer("chat.completion", name), "choices": [choice], "usage": form.usage([result])}

    def _constraint(self, grammar: Grammar) -> Constraint:
        """Of an answer's form. InputError where llguidance is not installed, or can't follow the grammar."""
        if self._grammars is None:
            try:
                from smc.structured.constraint import Grammars
            except ImportError:
                raise InputError("forms of answers need the package llguidance: pip install llguidance") from None
            self._grammars = Grammars(self.model)
        return self._grammars.constraint(grammar)

    def _stream(
        self,
        tokens: list[int],
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        seed: int | None,
        logit_bias: dict[str, float] | None,
        **options: Any,
    ) -> TextStream:
        if self._drafter is not None:
            self._drafter.close()
        self._drafter = self._drafters.new() if self._drafters is not None else None
        return self.model.stream(
            tokens,
            max_tokens=None if max_tokens is None or max_tokens < 1 else max_tokens,
            stop=stop or (),
            seed=self._seed if seed is None else seed,
            logit_bias={int(token): bias for token, bias in (logit_bias or {}).items()},
            sequence=self._sequence,
            drafter=self._drafter,
            **options,
        )

    def _completion_pieces(
        self, head: Answer, stream: TextStream, prompt: str, echo: bool, echoed: Answer | None
    ) -> Iterator[Answer]:
        sent, offset = 0, len(prompt)
        if echo:
            yield {**head, "choices": [form.completion_choice(0, prompt, echoed, None)]}
        for piece in stream:
            logprobs = None
            if stream.result.logprobs is not None:
                logprobs = form.completion_logprobs(stream.result.logprobs[sent:], self._texts, offset)
                sent = len(stream.result.logprobs)
            offset += len(piece)
            yield {**head, "choices": [form.completion_choice(0, piece, logprobs, None)]}
        reason = form.FINISH_REASONS[stream.result.finish_reason]
        yield {**head, "choices": [form.completion_choice(0, "", None, reason)]}

    def _chat_pieces(self, head: Answer, stream: TextStream, expected: AnswerForm) -> Iterator[Answer]:
        sent, calls = 0, expected.filter()
        yield {**head, "choices": [form.chat_piece(0, {"role": "assistant"}, None, None)]}
        for piece in stream:
            shown = piece if calls is None else calls.push(piece)
            logprobs = None
            if stream.result.logprobs is not None:
                logprobs = form.chat_logprobs(stream.result.logprobs[sent:], self._texts)
                sent = len(stream.result.logprobs)
            if shown or logprobs:
                yield {**head, "choices": [form.chat_piece(0, {"content": shown}, logprobs, None)]}
        rest, found = calls.end(stream.result.text) if calls is not None else ("", [])
        last: Answer = {"content": rest} if rest else {}
        if found:
            last["tool_calls"] = [call.as_openai(place) for place, call in enumerate(found)]
        reason = "tool_calls" if found else form.FINISH_REASONS[stream.result.finish_reason]
        yield {**head, "choices": [form.chat_piece(0, last, None, reason)]}

    def _echoed_logprobs(self, tokens: list[int], count: int) -> Answer:
        """The `logprobs` of a prompt, which the text's sequence then holds but for the last token."""
        self._sequence.truncate(0)
        return form.echoed_logprobs(tokens[0], self._sequence.run_prompt(tokens, count), self._texts)

    # ---- tokens and numbers

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """The tokens of UTF-8 text; special tokens in it are parsed whatever `special` says."""
        return self.model.encode(text.decode("utf-8", "replace"), add_special_tokens=add_bos)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The UTF-8 text of tokens."""
        return self.model.decode(tokens, skip_special_tokens=not special).encode()

    def embed(self, text: str | Sequence[str]) -> Any:
        """The mean of the last hidden states, of length 1: a list of float, or a list of those."""
        if isinstance(text, str):
            return self.model.embed(text).tolist()
        return [self.model.embed(part).tolist() for part in text]

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Answer:
        """Embeddings in OpenAI's form."""
        texts = [input] if isinstance(input, str) else list(input)
        data = [{"object": "embedding", "index": i, "embedding": self.embed(text)} for i, text in enumerate(texts)]
        count = sum(len(self.model.encode(text)) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": model or self.model_path, "usage": usage}

    def n_ctx(self) -> int:
        """The number of tokens that the context holds."""
        return self.model.context_length

    def n_vocab(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.model.vocab_size

    def token_eos(self) -> int:
        """The first token that ends a text; -1 if there is none."""
        return min(self.model.eos_token_ids, default=-1)

    def token_bos(self) -> int:
        """The token that begins a text; -1 if there is none."""
        bos = self.model.artifact.manifest.generation.bos_token_id
        return -1 if bos is None else bos

    def reset(self) -> None:
        """Forget all texts."""
        self._sequence.truncate(0)

    def close(self) -> None:
        """Free the memory and the threads."""
        if self._drafters is not None:
            self._drafters.close()
        self.model.close()

    @property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self.model.tokenizer)


def _run(stream: TextStream) -> GenerationResult:
    for _ in stream:
        pass
    return stream.result
