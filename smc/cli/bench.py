"""`smc bench`: how fast an artifact runs here."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from smc.cli.options import artifact_argument, count_option, model_options, verbosity_options
from smc.cli.output import check_replaceable
from smc.cli.profile import limits_report, limits_table, profile_report, profile_table, thread_counts
from smc.cli.progress import StageProgress
from smc.cli.run import describe_model
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime import Model, Sequence
    from smc.runtime.profile import Profile


@click.command()
@artifact_argument
@count_option("--prompt-tokens", 512, "P", "Tokens of the prompt; 0 skips prefill.")
@count_option("--decode-tokens", 128, "D", "Tokens to decode; 0 skips decoding.")
@count_option("--depth", 0, "N", "Tokens in the KV cache before each run.")
@count_option("--sequences", 1, "S", "Sequences to decode at once.", least=1)
@count_option("--repeat", 5, "R", "Number of runs; the medians are shown.", least=1)
@model_options
@click.option("--profile", "profiled", is_flag=True, help="Also show where the time goes, kernel by kernel.")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw the profile as rooflines to FILE.")
@click.option(
    "--static", is_flag=True, help="Look at the machine code that a checkpoint gets on a GPU; nothing is run."
)
@click.option("--target", metavar="NAME", help="The GPUs that --static looks at, by default cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@verbosity_options
def bench(
    artifact: Path,
    prompt_tokens: int,
    decode_tokens: int,
    depth: int,
    sequences: int,
    repeat: int,
    context_length: int,
    threads: int,
    kv_dtype: str,
    level: str | None,
    profiled: bool,
    svg: Path | None,
    static: bool,
    target: str | None,
    as_json: bool,
) -> None:
    """Measure ARTIFACT on this machine: prefill and decode speed, memory, loading.

    Prefill is one call with P tokens. Decode is D steps with one token for each of S sequences. Both start with N
    tokens in the KV cache, after a warm-up, and compute the logits of the last tokens without sampling. Tokens per
    second are those of all sequences together. GB/s counts the weights that a step multiplies (not the embedding table)
    and the keys and values that it reads.

    --profile shows the time, bytes and multiply-adds of every kernel, the cost of barriers and of the rest, and the
    limits of this machine, which it also measures. It shows the fastest of R runs.

    --static takes a checkpoint in place of an artifact. It shows registers, spills, how many blocks of threads a
    multiprocessor holds, how weights are loaded (where nvdisasm is installed), and the bytes that a token moves.

    \b
    Examples:
      smc bench smollm2.smc --threads 2 --prompt-tokens 512 --decode-tokens 128 --json
      smc bench smollm2.smc --profile --svg roofline.svg
      smc bench ./TinyLlama --target cuda --static
    """
    if static:
        click.echo(_static(str(artifact), target or "cuda", as_json))
        return
    if target is not None:
        raise InputError("--target is what --static looks at: give both")
    from smc.runtime import load

    if svg is not None:
        check_replaceable(svg, "drawing", b"<svg")
    started = time.perf_counter()
    options = {"context_length": context_length, "threads": threads, "kv_dtype": kv_dtype, "level": level}
    with load(artifact, sequences=sequences, **options) as model:
        load_seconds = time.perf_counter() - started
        describe_model(model)
        counts = {"prefill": prompt_tokens, "decode": decode_tokens}
        report = _measure(model, counts, depth, sequences, repeat, profiled or svg is not None)
        report["load_seconds"] = load_seconds
    if svg is not None:
        from smc.runtime.roofline import roofline_svg

        svg.write_text(roofline_svg(report), encoding="utf-8")
    click.echo(json.dumps(report) if as_json else _table(report))


def _static(model: str, target: str, as_json: bool) -> str:
    """The report about a checkpoint's program for GPUs."""
    import smc
    from smc.cli.pass_options import read_requests, run_requests
    from smc.codegen.artifact import is_artifact
    from smc.codegen.cuda.static import static_facts
    from smc.passes import FUSIONS

    if is_artifact(Path(model)):
        raise InputError(f"--static compiles a checkpoint, and {model} is an artifact: name what it was made from")
    module = run_requests(smc.load_checkpoint(model), read_requests((), None, None))
    facts = static_facts(smc.apply(module, FUSIONS), target)
    return json.dumps(facts.as_json()) if as_json else facts.table()


@dataclass
class _Runs:
    """The results of "prefill" and "decode": seconds of plain runs, and profiles with their seconds."""

    seconds: dict[str, list[float]]
    profiles: dict[str, list[tuple[float, Profile]]]
    kv_bytes_used: int = 0


def _run(model: Model, counts: dict[str, int], depth: int, sequences: int, repeat: int, profiled: bool) -> _Runs:
    """Run prefill and decode of so many tokens (0: skipped) alternating, each at the same depth."""
    measures = {"prefill": prefill_seconds, "decode": decode_seconds}
    names = [name for name, count in counts.items() if count]
    runs = _Runs({name: [] for name in names}, {name: [] for name in names})
    with ExitStack() as stack:
        progress = stack.enter_context(StageProgress(still=True))
        progress.update("measure", 0)
        texts = [stack.enter_context(model.new_sequence()) for _ in range(sequences)]

        def truncate(length: int) -> None:
            for text in texts:
                text.truncate(length)

        for text in texts:
            text.extend(fixed_tokens(model, 0, min(8, model.context_length - 1)))  # fills caches and wakes threads
        decode_seconds(model, texts, 1)
        truncate(0)
        for text in texts if depth else []:
            text.extend(fixed_tokens(model, 0, depth), "none")
        for done, name in enumerate(names * repeat, 1):
            runs.seconds[name].append(measures[name](model, texts, counts[name]))
            runs.kv_bytes_used = max(runs.kv_bytes_used, model.engine.info().kv_bytes_used)
            truncate(depth)
            if profiled:
                model.engine.profile_start()
                whole = measures[name](model, texts, counts[name])
                runs.profiles[name].append((whole, model.engine.profile_stop()))
                truncate(depth)
            progress.update("measure", done / (len(names) * repeat))
    return runs


def _measure(
    model: Model, counts: dict[str, int], depth: int, sequences: int, repeat: int, profiled: bool
) -> dict[str, Any]:
    """All figures; speeds are medians of `repeat` runs. InputError if the tokens do not fit the context."""
    from smc.runtime.interface import KV_DTYPES
    from smc.runtime.memory import peak_memory_bytes

    deepest, context = depth + max(counts.values()), model.context_length
    if deepest > context:
        raise InputError(f"{deepest} tokens do not fit the context of {context}: raise --ctx or measure fewer tokens")
    prompt_tokens, decode_tokens = counts["prefill"], counts["decode"]
    runs = _run(model, counts, depth, sequences, repeat, profiled)
    seconds = runs.seconds
    facts = model.engine.facts
    report: dict[str, Any] = {"artifact": str(model.artifact.path), "level": model.level, "threads": model.threads}
    report |= {"kv_dtype": list(KV_DTYPES)[facts.kv_dtype], "depth": depth, "sequences": sequences, "repeat": repeat}
    if prompt_tokens:
        report["prefill"] = _speeds(seconds["prefill"], prompt_tokens)
    if decode_tokens:
        # A step reads the weights once, and for each sequence the keys and values of all tokens up to its own.
        kv_bytes = facts.kv_bytes_per_token * (depth + (decode_tokens + 1) / 2)
        bytes_per_token = facts.token_weight_bytes / sequences + kv_bytes
        report["decode"] = _speeds(seconds["decode"], decode_tokens * sequences)
        report["decode"]["gb_per_s"] = bytes_per_token * report["decode"]["tokens_per_s"] / 1e9
        report["decode"]["bytes_per_token"] = round(bytes_per_token)
    report |= {
        "weight_bytes": facts.weight_bytes,
        "token_weight_bytes": facts.token_weight_bytes,
        "kv_bytes_used": runs.kv_bytes_used,
        "activation_bytes": facts.activation_bytes,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if profiled:
        [threads, *_] = {profile.threads for kind in runs.profiles.values() for _, profile in kind}
        limits = [model.engine.limits(count) for count in thread_counts(threads)]
        report["limits"] = limits_report(limits)
        report["profile"] = {
            name: profile_report(*min(profiles, key=itemgetter(0)), limits[-1], min(seconds[name]))
            for name, profiles in runs.profiles.items()
        }
    return report


def fixed_tokens(model: Model, start: int, count: int) -> list[int]:
    """Fixed tokens, spread over the vocabulary: the same in every run."""
    return [(start + i) * 7919 % model.vocab_size for i in range(count)]


def prefill_seconds(model: Model, sequences: list[Sequence], count: int) -> float:
    """A prompt of the first sequence."""
    tokens, buffer = fixed_tokens(model, 0, count), model.logits_buffer(1)
    started = time.perf_counter()
    sequences[0].extend(tokens, out=buffer)
    return time.perf_counter() - started


def decode_seconds(model: Model, sequences: list[Sequence], count: int) -> float:
    """Steps of one token per sequence, through the engine directly, as a program in C would run them."""
    import numpy as np

    from smc.runtime.interface import TOKEN, WANT_LOGITS, Batch

    width, length = len(sequences), sequences[0].length
    batch = np.zeros((count, width), TOKEN)
    batch["token"] = np.reshape(fixed_tokens(model, 1, count * width), (count, width))
    batch["sequence"] = [sequence.slot for sequence in sequences]
    batch["position"] = batch["index"] = np.arange(length, length + count)[:, None]
    batch["flags"] = WANT_LOGITS
    logits = model.logits_buffer(width)
    steps = [Batch(width, batch[i].ctypes.data, logits.ctypes.data, None) for i in range(count)]
    run = model.engine.run
    started = time.perf_counter()
    for step in steps:
        run(step)
    seconds = time.perf_counter() - started
    for sequence, tokens in zip(sequences, batch["token"].T, strict=True):
        sequence.tokens.extend(tokens.tolist())
    return seconds


def _speeds(seconds: list[float], tokens: int) -> dict[str, Any]:
    speeds = sorted(tokens / s for s in seconds)
    return {"tokens": tokens, "tokens_per_s": median(speeds), "slowest": speeds[0], "fastest": speeds[-1]}


def _table(report: dict[str, Any]) -> str:
    """Print the report for people."""
    lines = ["{artifact}: {threads} threads, level {level}, {kv_dtype} KV cache".format_map(report)]
    for name in ("prefill", "decode"):
        if name not in report:
            continue
        part = report[name]
        speed = f"{part['tokens_per_s']:.1f} tokens/s ({part['slowest']:.1f} to {part['fastest']:.1f})"
        bandwidth = f", {part['gb_per_s']:.1f} GB/s" if "gb_per_s" in part else ""
        where = f" after {report['depth']}" if report["depth"] else ""
        of = f" of {report['sequences']} sequences" if name == "decode" and report["sequences"] > 1 else ""
        lines.append(f"{name:8}{part['tokens']:6} tokens{of}{where}: {speed}{bandwidth}")
    names = ("peak_memory_bytes", "weight_bytes", "kv_bytes_used", "activation_bytes")
    peak, weights, cache, activations = (f"{report[name] / 2**20:.1f}" for name in names)
    parts = f"weights {weights}, KV cache {cache}, activations {activations}"
    lines.append(f"memory  {peak} MiB at the peak, Python included: {parts}")
    lines.append(f"load    {report['load_seconds']:.3f} s")
    if "profile" in report:
        lines += ["", limits_table(report["limits"])]
        lines += [f"\n{profile_table(name, part)}" for name, part in report["profile"].items()]
    return "\n".join(lines)
