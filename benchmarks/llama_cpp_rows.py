"""How the rows of benchmarks.llama_cpp are measured: speed beside llama.cpp, shares of a profile, quality."""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import inputs, peer
from benchmarks.llama_cpp_results import Result
from benchmarks.speed import Case, run_json

if TYPE_CHECKING:
    from benchmarks import quality

SPEED = "speed"
"""The first table."""

QUALITY_WINDOWS, QUALITY_CONTEXT = 20, 512
"""Windows of so many tokens distinguish recipes well enough for the place beside a speed."""


@dataclass(frozen=True)
class Model:
    """A model as both programs run it: its name for people, its folder (made when called), recipe and format."""

    name: str
    folder: Callable[[], Path]
    quant: str
    format: str

    @property
    def artifact(self) -> Path:
        """Compiled for this machine."""
        return inputs.artifact(self.folder(), self.quant)

    @property
    def gguf(self) -> Path:
        """The file for llama.cpp."""
        type, _, pure = self.format.partition("-")
        return peer.convert(self.folder(), type, pure=bool(pure))

    def make(self) -> list[Path]:
        """Make both files where they aren't there."""
        return [self.artifact, self.gguf]


class Row(ABC):
    """Something to measure, round by round, beside llama.cpp where that is possible.

    The arguments after `case` are those of `Result`.
    """

    def __init__(
        self,
        key: str,
        case: str,
        *,
        unit: str,
        table: str = SPEED,
        base: str | None = None,
    ) -> None:
        self.key, self.case, self.unit = key, case, unit
        self.table, self.base = table, base
        self.smc: list[float] = []
        self.llama_cpp: list[float] = []

    @abstractmethod
    def prepare(self) -> None:
        """Make what is measured, where it isn't there."""

    @abstractmethod
    def measure(self, *, swapped: bool, between: Callable[[], object] = lambda: None) -> None:
        """Add one round's figures; swapped: llama.cpp comes first; between: called between the two programs."""

    def result(self, smc: list[float], llama_cpp: list[float], commit: str, date: str, machine: str) -> Result:
        """The row with these figures."""
        return Result(
            key=self.key,
            table=self.table,
            case=self.case,
            unit=self.unit,
            smc=list(smc),
            llama_cpp=list(llama_cpp),
            base=self.base,
            commit=commit,
            date=date,
            machine=machine,
        )


class Speed(Row):
    """Tokens per second of both programs; level: see `peer.build`; busy: other programs that take a core each."""

    def __init__(
        self,
        key: str,
        model: Model,
        case: Case,
        threads: int,
        *,
        level: str | None = None,
        busy: int = 0,
        table: str = SPEED,
        base: str | None = None,
    ) -> None:
        parts = [f"{model.name} {case.name}", level, f"{threads} thread{'s' if threads > 1 else ''}"]
        beside = f"beside {busy} busy program{'s' if busy > 1 else ''}" if busy else None
        name = ", ".join(part for part in (*parts, beside) if part)
        super().__init__(key, name, unit="tokens/s", table=table, base=base)
        self._model, self._case = model, copy.deepcopy(case)
        self._threads, self._level, self._busy = threads, level, busy
        self.smc, self.llama_cpp = self._case.smc, self._case.llama_cpp

    def prepare(self) -> None:
        """Make llama.cpp and both files."""
        peer.build(self._level)
        self._model.make()

    def measure(self, *, swapped: bool, between: Callable[[], object] = lambda: None) -> None:
        """Run both programs once."""
        runs = [(self._case.run_smc, self._model.artifact), (self._case.run_llama_cpp, self._model.gguf)]
        (first, one), (second, other) = reversed(runs) if swapped else runs
        with busy_programs(self._busy):
            first(one, self._threads, self._level)
            between()
            second(other, self._threads, self._level)


class _Share(Row):
    """A percentage that is measured while an artifact decodes."""

    def __init__(self, key: str, what: str, model: Model, threads: int, table: str = SPEED) -> None:
        super().__init__(key, f"{what}, {model.name} decode, {threads} threads", unit="%", table=table)
        self._model, self._threads = model, threads

    def prepare(self) -> None:
        """Make the artifact."""
        self._model.make()


class Bandwidth(_Share):
    """Weight bytes that decoding multiplies per second, as a share of what reads beside it get.

    phases: of reads in the phases of a step, not of plain ones.
    """

    def __init__(
        self, key: str, model: Model, threads: int, *, phases: bool = False, table: str = SPEED
    ) -> None:
        what = "share of reads in a step's phases" if phases else "share of the memory's bandwidth"
        super().__init__(key, what, model, threads, table)
        self._figure = "phase_share" if phases else "share"

    def measure(self, *, swapped: bool, between: Callable[[], object] = lambda: None) -> None:
        """Five turns of benchmarks.bandwidth: their median."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bandwidth.json"
            command = [sys.executable, "-m", "benchmarks.bandwidth", str(self._model.artifact), "--turns", "5"]
            peer.run([*command, "--threads", str(self._threads), "--json", str(file)], quiet=True)
            turns = json.loads(file.read_text(encoding="utf-8"))["turns"]
        self.smc.append(100 * statistics.median(turn[self._figure] for turn in turns))


class OutsideKernels(_Share):
    """The share of a decoding step that no kernel runs in: barriers, handing out work, the step's own start and end."""

    def __init__(self, key: str, model: Model, threads: int) -> None:
        super().__init__(key, "time outside kernels", model, threads)

    def measure(self, *, swapped: bool, between: Callable[[], object] = lambda: None) -> None:
        """Take one profile."""
        command = [*inputs.SMC, "bench", str(self._model.artifact), "--threads", str(self._threads), "--profile"]
        report = run_json([*command, "--prompt-tokens", "0", "--decode-tokens", "32", "--json"])
        self.smc.append(100 * float(report["profile"]["decode"]["outside_kernels_share"]))


class TernaryGemv(Row):
    """One token by a 2048×2048 matrix of 2-bit ternary weights on one thread, out of 12 MiB of them in the L3 cache."""

    def __init__(self, key: str) -> None:
        case = "ternary 2048×2048 by one token, weights in L3, 1 thread"
        super().__init__(key, case, unit="ms")

    def prepare(self) -> None:
        """Nothing: its kernel is built, or found, whenever it is measured."""

    def measure(self, *, swapped: bool, between: Callable[[], object] = lambda: None) -> None:
        """One round of benchmarks.encodings."""
        from benchmarks.kernels import measurable_levels

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "encodings.json"
            command = [sys.executable, "-m", "benchmarks.encodings", "--level", measurable_levels()[0].name]
            command += ["--only", "ternary 2 bits, i8 token", "--threads", "1", "--rounds", "1", "--json", str(file)]
            peer.run(command, quiet=True)
            (figures,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
        self.smc += [1e3 * seconds for seconds in figures["cached"]]


class Quality(Row):
    """Mean KL divergence of both programs' files from the model as it was; kept for each file, as it takes minutes."""

    def __init__(self, key: str, model: Model, threads: int, *, table: str) -> None:
        super().__init__(key, f"SmolLM2 `{model.quant}` beside {model.format}", unit="nats", table=table)
        self._model, self._threads = model, threads

    def prepare(self) -> None:
        """Measure what was never measured."""
        from benchmarks import quality

        size, model = (QUALITY_WINDOWS, QUALITY_CONTEXT, self._threads), self._model
        folder, text = model.folder(), inputs.evaluation_text()
        self._own = _kept_divergence(
            model.artifact, lambda: quality.measure_artifacts(folder, [model.artifact], text, *size)[0]
        )
        self._peer = _kept_divergence(model.gguf, lambda: quality.measure_peer(folder, model.format, text, *size))

    def measure(self, *, swapped: bool, between: Callable[[], object] = lambda: None) -> None:
        """Once is enough: it does not depend on time."""
        self.smc, self.llama_cpp = [self._own], [self._peer]


def _kept_divergence(file: Path, measure: Callable[[], quality.Quality]) -> float:
    """The mean KL divergence, which is measured for the first time that this file is seen."""
    digest = hashlib.sha256(file.read_bytes() + f"{QUALITY_WINDOWS} {QUALITY_CONTEXT}".encode()).hexdigest()
    kept = inputs.BUILD / "quality" / f"{digest[:16]}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(measure())), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))["mean_kl"])


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """While the block runs, so many programs compute without end."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2 if programs else 0)  # they have started
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()
