"""`smc run`: text from an artifact."""

from __future__ import annotations

import errno
import json
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.cached import cached_artifact
from smc.cli.draft import draft_option, drafter_of
from smc.cli.function_calls import FunctionQuestion, functions_option, print_calls
from smc.cli.options import (
    check_utf8,
    model_argument,
    model_options,
    sampling_options,
    utf8_text,
    verbosity_options,
)
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime import Model
    from smc.runtime.generation import GenerationResult, TokenLogprob
    from smc.runtime.text_stream import TextStream

PATIENCE = 2.0
"""Seconds after which waiting for standard input is explained."""


@click.command()
@model_argument
@click.argument("prompt", required=False, callback=utf8_text)
@click.option("--system", metavar="TEXT", callback=utf8_text, help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@functions_option
@click.option("--must-call", is_flag=True, help="With --functions: the answer is a call, nothing else.")
@sampling_options
@model_options
@draft_option
@click.option(
    "--logprobs",
    type=click.IntRange(0),
    metavar="N",
    help="Show every token's log-probability and the N likeliest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON at the end.")
@click.option("--stream", "streamed", is_flag=True, help="With --json, print a line of JSON for every event.")
@click.option("--stats", is_flag=True, help="Print speed and memory to standard error.")
@verbosity_options
def run(
    model_path: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    functions_file: Path | None,
    must_call: bool,
    context_length: int,
    threads: int,
    kv_dtype: str,
    level: str | None,
    draft: str | None,
    as_json: bool,
    streamed: bool,
    stats: bool,
    **options: Any,
) -> None:
    """Generate text with MODEL, printed as it comes.

    MODEL is an artifact, a GGUF file, a checkpoint folder or a hub id. smc compiles a checkpoint once, into a cache
    that `smc list` shows.

    If the model has a chat template, PROMPT is a user's message; otherwise, and with --raw, it is a text to continue.
    Piped text comes before PROMPT, with an empty line between them; without PROMPT, or if it is "-", it is the prompt.
    Ctrl-C ends the text, with exit status 130. Sampling options that you leave out come from the checkpoint's
    generation config, else the text is greedy.

    With --functions a call of a function is printed as a line of JSON. Models with function tokens (<nexa_0> …) always
    answer with calls.

    --json --stream prints {"event": "text", "text": …} for each part and at the end {"event": "result", …} as --json.

    \b
    Examples:
      smc run smollm2.smc "What is the capital of France?"
      smc run SmolLM2-135M-Instruct.gguf "Hello"
      smc run smollm2.smc --raw "Once upon a time" -n 64 --temperature 0.7 --seed 1
      git diff | smc run smollm2.smc "What does this change?"
    """
    from smc.runtime import load

    if streamed and not as_json:
        raise InputError("--stream needs --json: other output is always printed as it comes")
    if functions_file is not None or must_call:
        question = FunctionQuestion(functions_file, must_call, raw)
    text = _read_prompt(prompt)
    started = time.perf_counter()
    path = cached_artifact(model_path)
    with load(path, context_length=context_length, threads=threads, kv_dtype=kv_dtype, level=level) as model:
        load_seconds = time.perf_counter() - started
        describe_model(model)
        if functions_file is not None:
            print_calls(model, question, text, system, options, as_json)
            return
        drafter = drafter_of(draft, model)()
        stream = model.stream(_prompt_tokens(model, text, system, raw), drafter=drafter, **options)
        interrupted = _print_text(model, stream, as_json, streamed)
        _print_result(model, stream.result, load_seconds, as_json, streamed, stats)
    if interrupted:
        click.get_current_context().exit(130)


def _print_text(model: Model, stream: TextStream, as_json: bool, streamed: bool) -> bool:
    """Print the text while it is generated; returns whether Ctrl-C ended it."""
    from smc.runtime.interrupt import on_interrupt

    try:
        with on_interrupt(model.engine.cancel):
            for piece in stream:
                if streamed:
                    _print_json({"event": "text", "text": piece})
                elif not as_json:
                    click.echo(piece, nl=False)
    except KeyboardInterrupt:
        return True
    return False


def _print_result(
    model: Model, result: GenerationResult, load_seconds: float, as_json: bool, streamed: bool, stats: bool
) -> None:
    """Print what follows the text: the result as JSON, log-probabilities, statistics."""
    if as_json:
        event = {"event": "result"} if streamed else {}
        _print_json(event | _as_json(model, result, load_seconds))
    elif result.text and not result.text.endswith("\n"):
        click.echo()
    for entry in result.logprobs or () if not as_json else ():
        click.echo(_logprob_line(model, entry))
    if stats:
        click.echo(_stats_line(model, result, load_seconds), err=True)


def describe_model(model: Model) -> None:
    """Facts about an opened artifact, for -v."""
    facts = f"{model.threads} threads, level {model.level}, context {model.context_length}"
    messages.detail(f"{model.artifact.path}: {model.artifact.manifest.name}, {facts}")


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=not messages.writes_unicode()))


def _read_prompt(prompt: str | None) -> str:
    """The prompt; piped text comes before it, with an empty line between them."""
    if sys.stdin.isatty():
        if prompt is None:
            raise InputError('there is no prompt: give one as in `smc run ARTIFACT "Hello"`, or pipe it in')
        if prompt != "-":
            return prompt
    given = prompt if prompt != "-" else None
    piped = _read_standard_input(given is not None)
    return "\n\n".join(text for text in (piped, given) if text)


def _read_standard_input(can_be_none: bool) -> str:
    """The text on standard input; a line break at the end is the shell's. can_be_none: a stream that can't be read,
    such as nohup's, counts as empty."""
    try:
        if not select.select([sys.stdin], [], [], PATIENCE)[0]:
            messages.note("(waiting for text on standard input; if there is none, add </dev/null to the command)")
    except (OSError, ValueError):  # it is not a stream of the system
        pass
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError("the prompt on standard input is not UTF-8 text") from None
    except OSError as error:
        if can_be_none and error.errno in (errno.EBADF, None):  # None: the system did not refuse it
            return ""
        raise InputError(f"the prompt can't be read from standard input: {error.strerror}") from None
    check_utf8("the prompt on standard input", text)
    return text


def _prompt_tokens(model: Model, text: str, system: str | None, raw: bool) -> list[int]:
    """The prompt as tokens: a conversation if there is a template, else plain text."""
    if raw or not model.has_chat_template:
        if system is not None:
            raise InputError("--system needs a chat template" + (": leave out --raw" if raw else ""))
        return model.encode(text)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.apply_chat_template([*messages, {"role": "user", "content": text}])


def _as_json(model: Model, result: GenerationResult, load_seconds: float) -> dict[str, Any]:
    timings = result.timings
    answer: dict[str, Any] = {
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt,
        "load_seconds": load_seconds,
        "prefill": {"tokens": timings.prompt_tokens, "tokens_per_s": timings.prompt_tokens_per_second},
        "decode": {"tokens": timings.decoded_tokens, "tokens_per_s": timings.decode_tokens_per_second},
        "threads": model.threads,
        "level": model.level,
    }
    if timings.guesses:
        answer["guesses"] = {"run": timings.guesses, "right": timings.right_guesses}
    if result.logprobs is not None:
        answer["logprobs"] = [
            {
                "token": entry.token,
                "text": model.decode([entry.token], skip_special_tokens=False),
                "logprob": entry.logprob,
                "top": [{"token": token, "logprob": logprob} for token, logprob in entry.top],
            }
            for entry in result.logprobs
        ]
    return answer


def _logprob_line(model: Model, entry: TokenLogprob) -> str:
    def show(token: int) -> str:
        return json.dumps(model.decode([token], skip_special_tokens=False), ensure_ascii=not messages.writes_unicode())

    top = "  ".join(f"{show(token)} {logprob:.3f}" for token, logprob in entry.top)
    return f"{entry.logprob:9.3f}  {show(entry.token):16}  {top}".rstrip()


def _stats_line(model: Model, result: GenerationResult, load_seconds: float) -> str:
    from smc.runtime.memory import peak_memory_bytes

    timings = result.timings
    guesses = f" ({timings.right_guesses} of {timings.guesses} guesses were right)" if timings.guesses else ""
    return (
        f"loaded in {load_seconds:.2f} s; prompt: {timings.prompt_tokens} tokens, "
        f"{timings.prompt_tokens_per_second:.1f} tokens/s; answer: {len(result.tokens)} tokens, "
        f"{timings.decode_tokens_per_second:.1f} tokens/s{guesses}; {model.threads} threads, level {model.level}, "
        f"peak memory {peak_memory_bytes() / 2**20:.0f} MiB"
    )
