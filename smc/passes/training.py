"""The passes `train` and `distill`: their options. `smc.training` does the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from smc.errors import InputError
from smc.ir import Module
from smc.passes.base import Context, Need, Pass
from smc.passes.registry import register

LIMITS = ("minutes", "steps", "tokens")

OPTIONS = """
    data: files to learn from. shares: how often each file is taken (3+1), by default in proportion to its tokens.
    objective: what a file has. text: UTF-8 text, of which every token counts; denoise: the same with UL2R's denoisers
    (arXiv 2210.11399); chat: JSONL, a conversation {"messages": […]} per line, in which the assistant's tokens count;
    completion: JSONL {"prompt": …, "completion": …}, the completion counts; preference: JSONL {"prompt", "chosen",
    "rejected"}, for DPO (arXiv 2305.18290) with `beta`.
    minutes, steps, tokens: how long; give one of them. On one thread, a run by steps or tokens always gives the same
    bits. batch: sequences per step, window: tokens of each, accumulate: parts that a step is computed in.
    learning_rate, schedule (cosine or linear down to `final` of it, or constant), warmup: steps in which it grows.
    decay: AdamW's weight decay of matrices. clip: the largest norm of gradients; 0: no limit.
    weights: all; lora (arXiv 2106.09685) with `rank` and `alpha` on every matrix of the layers; scales: those of
    quantized matrices. include: glob patterns of parameters to train.
    quantize: a recipe; its quantizers round the weights in every step and at the end (straight-through estimation).
    precision: bf16 rounds matrix products, f32 does not; auto takes bf16 if this CPU has it. checkpointing: compute
    layers again in the backward pass, to save memory.
    held_out: a text to evaluate on every `evaluate` steps; patience: stop after this many evaluations without a gain,
    and take the best state. save: steps between saved states. seed: of the order of examples and of first values.
    """


@dataclass(frozen=True)
class Training(Pass):
    """Base of the passes that train; `OPTIONS`, which ends each help text, explains the options."""

    needs: ClassVar[frozenset[Need]] = frozenset({"torch", "training"})

    data: tuple[str, ...]
    minutes: float | None = None
    steps: int | None = None
    tokens: int | None = None
    shares: tuple[float, ...] = ()
    objective: Literal["text", "denoise", "chat", "completion", "preference"] = "text"
    batch: int = 8
    window: int = 256
    accumulate: int = 1
    learning_rate: float = 3e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = 20
    final: float = 0.05
    decay: float = 0.0
    clip: float = 1.0
    weights: Literal["all", "lora", "scales"] = "all"
    rank: int = 16
    alpha: float = 32.0
    include: tuple[str, ...] = ("*",)
    quantize: str | None = None
    beta: float = 0.1
    precision: Literal["auto", "bf16", "f32"] = "auto"
    checkpointing: bool = False
    held_out: str | None = None
    evaluate: int = 50
    patience: int | None = None
    save: int = 50
    seed: int = 0

    def __init_subclass__(cls) -> None:
        """Add `OPTIONS` to the docstring of each pass."""
        super().__init_subclass__()
        cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n{OPTIONS}"

    def __post_init__(self) -> None:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(f"{self.name} needs one of minutes, steps and tokens, not {' and '.join(given) or 'none'}")
        if not self.data:
            raise InputError(f"{self.name} needs data: a file to train on")
        if self.shares and len(self.shares) != len(self.data):
            raise InputError(f"{self.name} has {len(self.shares)} shares for {len(self.data)} files of data")
        least = dict.fromkeys(("batch", "accumulate", "rank", "evaluate", "save"), 1)
        for name, low in (least | {"window": 2, "warmup": 0, "decay": 0, "clip": 0, "patience": 1}).items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f"{name} of {self.name} must be {low} or more, not {value}")
        for name in (*LIMITS, "learning_rate", "alpha", "beta", *["shares"] * bool(self.shares)):
            value = getattr(self, name)
            if value is not None and not all(v > 0 for v in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"{name} of {self.name} must be above 0, not {value}")
        if self.batch % self.accumulate:
            raise InputError(
                f"{self.name} can't divide a batch of {self.batch} into {self.accumulate} parts: accumulate must "
                "divide batch"
            )
        if self.patience is not None and self.held_out is None:
            raise InputError(f"patience of {self.name} needs a text to evaluate on: give held_out")

    def run(self, module: Module, context: Context) -> Module:
        """Run the training in `smc.training`."""
        if context.training is None and context.lazy:
            return module
        if context.training is None:
            raise InputError(f"pass {self.name} needs training: run it with smc.apply")
        return context.training(self, module, context)


@register("train")
@dataclass(frozen=True)
class Train(Training):
    """Train the model on texts, conversations or preferences."""


@register("distill")
@dataclass(frozen=True)
class Distill(Training):
    """Train the model to predict what its teacher predicts (Hinton et al., arXiv 1503.02531).

    The teacher is the model as it was before the passes, or the one that --teacher names. The loss is a weighted sum;
    each option is a weight. forward, reverse: KL(teacher ‖ model) and KL(model ‖ teacher), at a temperature; plain: the
    loss of the text itself; hidden: the squared error of layers' inputs, relative by token, against those of the
    teacher's layers that they came from; attention: the KL divergence of their attention weights. taps: the layers at
    which these two are taken (0-5+11), by default all that came from one of the teacher's, and for hidden the head.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch", "training", "teacher"})

    forward: float = field(default=1.0, kw_only=True)
    reverse: float = field(default=0.0, kw_only=True)
    plain: float = field(default=0.0, kw_only=True)
    hidden: float = field(default=0.0, kw_only=True)
    attention: float = field(default=0.0, kw_only=True)
    taps: tuple[str, ...] = field(default=(), kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = (self.forward, self.reverse, self.plain, self.hidden, self.attention)
        if min(parts) < 0 or max(parts) == 0:
            names = "forward, reverse, plain, hidden and attention"
            raise InputError(f"{names} of {self.name} must be 0 or more, and one of them above 0")
        if self.taps and not (self.hidden or self.attention):
            raise InputError(f"taps of {self.name} chooses layers for hidden and attention: give one of them a weight")
        if not self.temperature > 0:
            raise InputError(f"temperature of {self.name} must be above 0, not {self.temperature:g}")
        if self.objective == "preference":
            raise InputError(f"{self.name} can't learn from preferences: use the pass train")
