"""What speculation gains: texts with and without a drafter, alternating.

    python -m benchmarks.speculation smollm2.smc
    python -m benchmarks.speculation smollm2.smc --record steps.json
    python -m benchmarks.speculation tinyllama.smc --replay steps.json

The last case makes wrong guesses only: what speculation costs at worst. A replay runs the steps of another model, with
the same numbers of guesses and right guesses, through this model's engine: it shows its speed if its guesses were right
as often.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click

from smc.runtime import Model, load
from smc.runtime.speculation import PromptLookup

CODE = """def total(orders):
    result = 0
    for order in orders:
        if order.paid:
            result = result + order.price * order.count
    return result


def average(orders):
    count = 0
    for order in orders:
        if order.paid:
            count = count + order.count
    return total(orders) / count
"""

PROSE = """The lighthouse stands on a rock in the bay, two miles from the village. It was built in 1868, after three
ships were lost there in one winter. The keeper lived in it with his family until 1974; since then the lamp has been run
by a machine. In summer a boat takes visitors to the rock, who climb the 197 steps to the gallery and look for seals."""

PROMPTS = {
    "code": f"Add type hints to this Python program and print the whole program again:\n\n```python\n{CODE}```",
    "summary": f"Repeat the facts of this text in your own words, sentence by sentence:\n\n{PROSE}",
    "story": "Tell a story about a fox who learns to count.",
}


class Recorder(PromptLookup):
    """Keeps all guesses, and how long the text was then."""

    def __init__(self) -> None:
        super().__init__()
        self.proposals: list[tuple[int, list[int]]] = []

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `PromptLookup`."""
        guesses = super().propose(tokens, most)
        self.proposals.append((len(tokens), guesses))
        return guesses

    def steps(self, text: Sequence[int]) -> list[tuple[int, int]]:
        """(guesses, tokens that the text gained) of every step; text: with its prompt, from the first proposal on."""
        steps = []
        ends = [length for length, _ in self.proposals[1:]] + [len(text)]
        for (length, guesses), end in zip(self.proposals, ends, strict=True):
            pairs = zip(guesses, text[length:], strict=False)
            gain = 1 + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            if length + gain <= end:  # steps without guesses follow until the next proposal
                steps += [(len(guesses), gain)] + [(0, 1)] * (end - length - gain)
        return steps


class Wrong(Recorder):
    """Guesses as many tokens as it may, all wrong."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """See `Drafter`: the first token of a vocabulary is none of text."""
        self.proposals.append((len(tokens), [0] * most))
        return [0] * most


CASES: dict[str, tuple[str, type[Recorder]]] = {
    **{kind: (prompt, Recorder) for kind, prompt in PROMPTS.items()},
    "wrong": (PROMPTS["story"], Wrong),
}


def compare(
    model: Model, prompt: str, recorders: type[Recorder], tokens: int, rounds: int
) -> tuple[float, float, float, list[tuple[int, int]]]:
    """Median tokens/s without and with guesses, the share of guesses that came true, and the last round's steps."""
    text = model.apply_chat_template([{"role": "user", "content": prompt}])
    plain, drafted, right, steps = [], [], 0.0, list[tuple[int, int]]()
    for _ in range(rounds):
        without = model.generate(text, max_tokens=tokens, temperature=0)
        recorder = recorders()
        result = model.generate(text, max_tokens=tokens, temperature=0, drafter=recorder)
        assert result.tokens == without.tokens
        plain.append(without.timings.decode_tokens_per_second)
        drafted.append(result.timings.decode_tokens_per_second)
        right = result.timings.right_guesses / max(1, result.timings.guesses)
        steps = recorder.steps([*text, *result.tokens])
    return statistics.median(plain), statistics.median(drafted), right, steps


def replay(model: Model, steps: Sequence[tuple[int, int]], rounds: int) -> tuple[float, float]:
    """Median tokens/s of plain steps, and of steps with these numbers of guesses and gains."""
    tokens = sum(gain for _, gain in steps)
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for rate, plan in zip(rates, ([(0, 1)] * tokens, steps), strict=True):
            with model.new_sequence() as sequence:
                sequence.extend([1] * 64, "none")
                started = time.perf_counter()
                for guesses, gain in plan:
                    sequence.next_tokens([1 + i for i in range(1 + guesses)])
                    sequence.truncate(sequence.length - 1 - guesses + gain)
                rate.append(tokens / (time.perf_counter() - started))
    return statistics.median(rates[0]), statistics.median(rates[1])


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--tokens", default=200, show_default=True, help="Longest answer.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--record", type=click.Path(path_type=Path), help="Write the steps to this file.")
@click.option("--replay", "replayed", type=click.Path(path_type=Path, exists=True), help="Run the steps of this file.")
def main(artifact: Path, tokens: int, rounds: int, record: Path | None, replayed: Path | None) -> None:
    """Measure what `--draft lookup` gains on ARTIFACT."""
    recorded = {}
    with load(artifact) as model:
        if replayed is not None:
            for kind, steps in json.loads(replayed.read_text()).items():
                plain, drafted = replay(model, steps, rounds)
                click.echo(f"{kind:8} {plain:7.1f} → {drafted:7.1f} tokens/s, {drafted / plain:.2f}x (a replay)")
            return
        for kind, (prompt, recorders) in CASES.items():
            plain, drafted, right, recorded[kind] = compare(model, prompt, recorders, tokens, rounds)
            click.echo(
                f"{kind:8} {plain:7.1f} → {drafted:7.1f} tokens/s, {drafted / plain:.2f}x, {right:.0%} of guesses right"
            )
    if record is not None:
        record.write_text(json.dumps(recorded))


if __name__ == "__main__":
    main()
