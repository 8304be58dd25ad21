"""Regular languages of bytes and tokens as tables: parts are put together, then made deterministic.

Parts are functions that add states to a `Builder` behind a given state and return the state where they end. Besides
bytes an edge may be a token (one that stands for no text, such as an end token), or the call of another automaton: it
begins with a token and goes on behind the edge when it has returned (Woods 1970, recursive transition networks).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from smc.errors import InputError

MOST_STATES = 1 << 14
"""Numbers of states have 16 bits, a few of which mean something else; tables stay below a few MB."""


TOO_LARGE = "the functions are too large for an executable: bound strings and lists more tightly, or give fewer"


@dataclass(frozen=True)
class TokenEdge:
    """An edge that one token takes. calls: the automaton that begins behind it, or None."""

    token: int
    calls: int | None = None


Label = int | TokenEdge
"""A byte or a token."""


@dataclass
class Builder:
    """A nondeterministic automaton under construction. Its states are numbers from 0 on."""

    edges: list[dict[Label, list[int]]] = field(default_factory=list)
    jumps: list[list[int]] = field(default_factory=list)  # edges that take nothing

    def state(self) -> int:
        """A new state."""
        self.edges.append({})
        self.jumps.append([])
        if len(self.edges) > 8 * MOST_STATES:
            raise InputError(TOO_LARGE)
        return len(self.edges) - 1

    def edge(self, start: int, label: Label, end: int) -> None:
        """From one state to another."""
        self.edges[start].setdefault(label, []).append(end)

    def jump(self, start: int, end: int) -> None:
        """The same, taking nothing."""
        self.jumps[start].append(end)

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """What can be reached by jumps."""
        seen, waiting = set(states), list(states)
        while waiting:
            for state in self.jumps[waiting.pop()]:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        return frozenset(seen)


Part = Callable[[Builder, int], int]


def text(value: str) -> Part:
    """Exactly this text."""
    return sequence(*(byte_of(bytes([byte])) for byte in value.encode()))


def byte_of(values: bytes) -> Part:
    """One of these bytes."""

    def build(builder: Builder, start: int) -> int:
        end = builder.state()
        for value in sorted(set(values)):
            builder.edge(start, value, end)
        return end

    return build


def token(number: int, calls: int | None = None) -> Part:
    """A token, and what is called behind it."""

    def build(builder: Builder, start: int) -> int:
        end = builder.state()
        builder.edge(start, TokenEdge(number, calls), end)
        return end

    return build


def sequence(*parts: Part) -> Part:
    """One after another."""

    def build(builder: Builder, start: int) -> int:
        for part in parts:
            start = part(builder, start)
        return start

    return build


def either(*parts: Part) -> Part:
    """One of several."""

    def build(builder: Builder, start: int) -> int:
        end = builder.state()
        for part in parts:
            first = builder.state()
            builder.jump(start, first)
            builder.jump(part(builder, first), end)
        return end

    return build


def maybe(part: Part) -> Part:
    """It, or nothing."""
    return either(part, sequence())


def repeated(part: Part) -> Part:
    """Any number of times."""

    def build(builder: Builder, start: int) -> int:
        first = builder.state()
        builder.jump(start, first)
        last = part(builder, first)
        builder.jump(last, first)
        end = builder.state()
        builder.jump(first, end)
        return end

    return build


def times(part: Part, least: int, most: int | None) -> Part:
    """From `least` to `most` times; None: any number."""
    if most is None:
        return sequence(*[part] * least, repeated(part))

    def build(builder: Builder, start: int) -> int:
        end = builder.state()
        for count in range(most):
            if count >= least:
                builder.jump(start, end)
            start = part(builder, start)
        builder.jump(start, end)
        return end

    return build


def characters(ascii_ones: bytes) -> Part:
    """One of these ASCII characters, or any other character of Unicode, in UTF-8 (Unicode 16, table 3-7)."""
    tail = byte_of(bytes(range(0x80, 0xC0)))

    def span(low: int, high: int) -> Part:
        return byte_of(bytes(range(low, high + 1)))

    return either(
        byte_of(ascii_ones),
        sequence(span(0xC2, 0xDF), tail),
        sequence(span(0xE0, 0xE0), span(0xA0, 0xBF), tail),
        sequence(byte_of(bytes([*range(0xE1, 0xED), 0xEE, 0xEF])), tail, tail),
        sequence(span(0xED, 0xED), span(0x80, 0x9F), tail),
        sequence(span(0xF0, 0xF0), span(0x90, 0xBF), tail, tail),
        sequence(span(0xF1, 0xF3), tail, tail, tail),
        sequence(span(0xF4, 0xF4), span(0x80, 0x8F), tail, tail),
    )


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton. next: by state, label → state. ends: states where the text may end.

    entries: of the automata that edges call, their first states.
    """

    next: Sequence[dict[Label, int]]
    ends: frozenset[int]
    entries: Sequence[int]


def determinize(builder: Builder, roots: Sequence[int], last: Iterable[int], entries: Sequence[int]) -> Automaton:
    """The subset construction (Rabin and Scott 1959). roots: states that get the numbers 0, 1, …, one after another.

    last: states where the text, or a called automaton, may end. entries: first states of the automata that are called.
    Raises InputError where there are more than `MOST_STATES` states.
    """
    final = frozenset(last)
    numbers: dict[frozenset[int], int] = {}
    waiting: deque[frozenset[int]] = deque()

    def number(states: Iterable[int]) -> int:
        closed = builder.closure(states)
        if closed not in numbers:
            if len(numbers) >= MOST_STATES:
                raise InputError(TOO_LARGE)
            numbers[closed] = len(numbers)
            waiting.append(closed)
        return numbers[closed]

    for index, root in enumerate(roots):
        assert number([root]) == index, "roots are different states"
    begun = [number([entry]) for entry in entries]
    found: list[dict[Label, int]] = []
    while waiting:
        states = waiting.popleft()
        targets: dict[Label, list[int]] = {}
        for state in sorted(states):
            for label, ends in builder.edges[state].items():
                targets.setdefault(label, []).extend(ends)
        found.append({label: number(ends) for label, ends in targets.items()})
    return Automaton(found, frozenset(n for states, n in numbers.items() if states & final), begun)
