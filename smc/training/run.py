"""A run: steps, evaluations, saved states, and a module at the end."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smc.errors import InputError
from smc.ir import Module, ceil_div
from smc.passes import Context
from smc.passes import apply as apply_passes
from smc.passes.training import Distill, Training
from smc.training import ranks, setup
from smc.training.curve import draw
from smc.training.data import Batches, Example, read_source
from smc.training.objective import Objective, together
from smc.training.peft import write_adapter
from smc.training.program import Program
from smc.training.schedule import rate
from smc.training.state import CURVE, LOG, RESULT, STATE, Log, Progress, load, save

EVALUATED = 32
"""An evaluation takes at most this many windows of the held-out text."""

SAY_SECONDS = 10.0


def train(job: Training, module: Module, context: Context) -> Module:
    """Run or continue a job and return the trained module. See `smc.passes.training.Training`.

    Its state is in a folder of `context.work`, named by everything that the run depends on; without `context.work` in a
    temporary one. InputError if data, model and job do not fit, or if the loss is not finite.
    """
    quantizers = setup.quantizers_of(job)
    if context.lazy:
        return apply_passes(module, quantizers, context)
    teacher = context.teacher if isinstance(job, Distill) else None
    if teacher is not None:
        _check_teacher(module, teacher)
    keep: tempfile.TemporaryDirectory[str] | None = None
    if context.work is None:
        keep = tempfile.TemporaryDirectory(prefix="smc-", ignore_cleanup_errors=True)
    root = Path(keep.name) if keep is not None else context.work
    assert root is not None
    folder = _folder_of(job, module, teacher, root)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RESULT).is_file():
        context.note(f"{job.name}: already done, in {folder}")
    else:
        with ranks.alone(folder):
            _Run(job, module, teacher, folder, context).go()
    ranks.wait()
    found = load(folder / RESULT)
    assert found is not None
    progress = found[1]
    context.report(
        f"{progress.step:,} steps, {progress.tokens:,} tokens in {_minutes(progress.seconds)}"
        + (f", held-out perplexity {math.exp(progress.best):.2f}" if progress.best is not None else "")
    )
    return apply_passes(setup.with_results(module, folder / RESULT, keep), quantizers, context)


def curve_of(job: Training, module: Module, teacher: Module, work: Path) -> str | None:
    """The loss's curve, SVG, of a run with these arguments that is done; None where there is none."""
    path = _folder_of(job, module, teacher if isinstance(job, Distill) else None, work) / CURVE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _folder_of(job: Training, module: Module, teacher: Module | None, root: Path) -> Path:
    """Where a run keeps its state."""
    files = [Path(name) for name in (*job.data, *([job.held_out] if job.held_out else []))]
    return root / f"{job.name}-{setup.key_of(job, module, teacher, files)}"


def _check_teacher(module: Module, teacher: Module) -> None:
    """InputError if teacher and model have different tokens."""
    import json

    own, other = module.facts, teacher.facts
    why = (
        "so their predictions are about different tokens and can't be compared: let the teacher write texts and train "
        "on these, or take one with the same tokenizer"
    )
    if own.vocab_size != other.vocab_size:
        sizes = f"{other.vocab_size} tokens, {own.name} has {own.vocab_size}"
        raise InputError(f"the teacher {other.name} has {sizes}, {why}")
    if own.tokenizer is not None and other.tokenizer is not None and own.tokenizer != other.tokenizer:
        vocabularies = [json.loads(text).get("model", {}).get("vocab") for text in (own.tokenizer, other.tokenizer)]
        if vocabularies[0] != vocabularies[1]:
            raise InputError(f"the teacher {other.name} has another tokenizer than {own.name}, {why}")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


class _Run:
    """A job that runs."""

    def __init__(self, job: Training, module: Module, teacher: Module | None, folder: Path, context: Context) -> None:
        self.job, self.module, self.folder, self.context = job, module, folder, context
        facts = module.facts
        window = min(job.window, facts.context_length)
        sources = [read_source(Path(name), job.objective, facts, window, job.seed) for name in job.data]
        if job.shares:
            sources = [type(s)(s.groups, share) for s, share in zip(sources, job.shares, strict=True)]
        self.batches = Batches(sources, job.batch, job.seed)
        self.held_out: list[Example] = []
        if job.held_out is not None:
            held = read_source(Path(job.held_out), "text", facts, window, 0)
            self.held_out = [group[0] for group in held.groups[:EVALUATED]]
        self.leaves = setup.leaves_of(module, job, setup.roundings(module, setup.quantizers_of(job)))
        self.program = Program(module, self.leaves, job.checkpointing)
        ranks.shard(self.program, self.program.parts)
        self.trained = {name: p for name, p in self.program.named_parameters() if p.requires_grad}
        matrices = [p for p in self.trained.values() if p.dim() > 1]
        vectors = [p for p in self.trained.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": job.decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=job.learning_rate,
            betas=(0.9, 0.95),
            fused=ranks.count() == 1,  # one pass over the memory in place of ten
        )
        self.objective = Objective(job, self.program, teacher)
        self.progress, self.best = Progress(), dict[str, Tensor]()
        is_bf16 = job.precision == "bf16" or (job.precision == "auto" and setup.has_bf16())
        self.rounded: Any = lambda: torch.autocast("cpu", torch.bfloat16) if is_bf16 else contextlib.nullcontext()
        self.said = 0.0

    # ---- the whole

    def go(self) -> None:
        """Run steps from the last saved state until the job's limit."""
        self._restore()
        if self.job.objective == "preference":
            for source in self.batches.sources:
                for group in source.groups:
                    self.objective.first[id(group)] = self.objective.remember(group).clone()
        self.log = Log(self.folder / LOG, self.progress.step)
        started, before = time.perf_counter(), self.progress.seconds
        while not self.progress.stopped and self._done() < 1:
            numbers = self._step()
            self.progress.seconds = before + time.perf_counter() - started
            if self.held_out and self.progress.step % self.job.evaluate == 0:
                numbers["held_out"] = self._evaluate()
            if ranks.rank() == 0:
                self.log.add({**numbers, "seconds": round(self.progress.seconds, 3)})
            self._say(numbers)
            if self.progress.step % self.job.save == 0:
                self._save(STATE)
        self._finish()

    def _done(self) -> float:
        """How much of the run is done, 0 … 1."""
        job, progress = self.job, self.progress
        parts = ((progress.step, job.steps), (progress.tokens, job.tokens), (progress.seconds / 60, job.minutes))
        return min(1.0, next(now / limit for now, limit in parts if limit is not None))

    def _step(self) -> dict[str, Any]:
        """One step of the optimizer; the numbers of its line in the log."""
        job, progress = self.job, self.progress
        speed = rate(job, progress.step, self._done())
        for group in self.optimizer.param_groups:
            group["lr"] = speed
        groups = self.batches[progress.step]
        weight = max(self.objective.weight(groups), 1e-9)
        own = groups[ranks.rank() :: ranks.count()]
        size, loss = ceil_div(len(own), job.accumulate), 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(own), size):
            with self.rounded():
                part = self.objective.loss(own[start : start + size]) / weight
            torch.autograd.backward(part * ranks.count())  # FSDP takes the mean of gradients
            loss += part.item()
        loss = ranks.total(loss)
        norm = ranks.whole(nn.utils.clip_grad_norm_(self.trained.values(), job.clip or math.inf)).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(
                f"the loss of step {progress.step + 1} is not finite ({loss:g}): lower the learning rate of "
                f"{job.learning_rate:g}; the last good state is in {self.folder}"
            )
        self.optimizer.step()
        progress.step += 1
        progress.tokens += sum(len(example.tokens) for group in groups for example in group)
        return {"step": progress.step, "loss": loss, "rate": speed, "norm": norm, "tokens": progress.tokens}

    @torch.no_grad()
    def _evaluate(self) -> float:
        """The mean loss per token of the held-out text; notes whether it is the best so far."""
        total = count = 0.0
        for start in range(0, len(self.held_out), self.job.batch):
            batch, targets, counts = together(self.held_out[start : start + self.job.batch])
            with self.rounded():
                logits = self.program(batch)[0][self.module.main.outputs[0]]
            for rows in torch.split(torch.arange(len(logits)), 256):
                losses = nn.functional.cross_entropy(logits[rows].float(), targets[rows], reduction="none")
                total, count = total + (losses * counts[rows]).sum().item(), count + counts[rows].sum().item()
        progress, loss = self.progress, total / count
        if progress.best is None or loss < progress.best:
            progress.best, progress.best_step, progress.waited = loss, progress.step, 0
            if self.job.patience is not None:
                self.best = {name: ranks.whole(p).detach().clone() for name, p in self.trained.items()}
        else:
            progress.waited += 1
            progress.stopped = self.job.patience is not None and progress.waited >= self.job.patience
        return loss

    def _say(self, numbers: dict[str, Any]) -> None:
        """Report progress, and print a line from time to time."""
        done, now = self._done(), time.perf_counter()
        self.context.progress(done)
        if now - self.said < SAY_SECONDS or ranks.rank():
            return
        self.said, seconds = now, self.progress.seconds
        held = f", held-out {numbers['held_out']:.3f}" if "held_out" in numbers else ""
        self.context.note(
            f"{self.job.name}: step {self.progress.step:,}, loss {numbers['loss']:.3f}{held}, "
            f"{self.progress.tokens / seconds:,.0f} tokens/s, {_minutes(seconds / done * (1 - done))} left"
        )

    # ---- states

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters, the optimizer's moments, and the best parameters so far."""
        found = {f"parameter {name}": ranks.whole(p) for name, p in self.trained.items()}
        for name, parameter in self.trained.items():
            state = self.optimizer.state.get(parameter, {})
            found |= {f"{key} {name}": ranks.whole(value) for key, value in state.items()}
        return {**found, **{f"best {name}": values for name, values in self.best.items()}}

    def _save(self, name: str) -> None:
        tensors = self._tensors()
        if ranks.rank() == 0:
            save(self.folder / name, tensors, self.progress)
        ranks.wait()

    def _restore(self) -> None:
        found = load(self.folder / STATE)
        if found is None:
            return
        tensors, self.progress = found
        for name, parameter in self.trained.items():
            ranks.fill(parameter, tensors[f"parameter {name}"])
            if f"best {name}" in tensors:
                self.best[name] = tensors[f"best {name}"]
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key} {name}" in tensors:
                    state[key] = tensors[f"{key} {name}"]
                    if key != "step":
                        state[key] = torch.empty_like(parameter)
                        ranks.fill(state[key], tensors[f"{key} {name}"])
            if state:
                self.optimizer.state[parameter] = state
        self.context.note(f"{self.job.name}: continuing from step {self.progress.step:,} in {self.folder}")

    def _finish(self) -> None:
        """Write the result and the curve; remove the state."""
        for name, values in self.best.items():
            ranks.fill(self.trained[name], values)
        results = _gathered(self.leaves)
        if ranks.rank():
            return
        if self.job.weights == "lora":
            write_adapter(self.folder / "adapter", self.module, self.job, results)
        curves: dict[str, Sequence[tuple[int, float]]] = {"loss": self.log.points("loss")}
        curves["held-out loss"] = self.log.points("held_out")
        (self.folder / CURVE).write_text(draw(curves), encoding="utf-8")
        save(self.folder / RESULT, results, self.progress)
        (self.folder / STATE).unlink(missing_ok=True)


def _gathered(leaves: Any) -> dict[str, Tensor]:
    """All that was trained; every process gets all of it."""
    return {name: ranks.whole(values) for name, values in setup.results_of(leaves).items()}
