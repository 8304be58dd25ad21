"""Rotary tables from a config: every kind of scaling, computed in float32 step by step as transformers does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from smc.errors import InputError
from smc.frontend.config import CONTEXT, FACTOR, THETA, Config
from smc.ir import RopeTable


@dataclass(frozen=True)
class _Scaled:
    """The frequencies after a scaling, and the factor of cosines and sines; `short`: the frequencies for contexts of at
    most `short_context` tokens."""

    frequencies: np.ndarray
    magnitude: float = 1.0
    text: str = ""
    short_context: int = 0
    short: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class _Rope:
    """A rotary embedding before its scaling: `width` channels of a head in pairs, and its settings."""

    settings: Config
    config: Config
    theta: float
    width: int

    @property
    def plain(self) -> np.ndarray:
        """float32 [width / 2]: theta to the power of -2i / width."""
        exponents = np.arange(0, self.width, 2, dtype=np.int64).astype(np.float32) / np.float32(self.width)
        return (np.float32(1.0) / np.power(np.float32(self.theta), exponents, dtype=np.float32)).astype(np.float32)

    @property
    def original_context(self) -> int:
        """Tokens that the model was trained on before its context was stretched."""
        context = self.config.integer("max_position_embeddings", 8192, CONTEXT)
        default = self.config.integer("original_max_position_embeddings", context, CONTEXT)
        return self.settings.integer("original_max_position_embeddings", default, CONTEXT)

    def magnitude(self, default: float) -> float:
        """The `attention_factor` of the settings."""
        return self.settings.number("attention_factor", default)


def rope_table(
    config: Config,
    head_dim: int,
    *,
    kind_of_layer: str | None = None,
    theta: float = 10000.0,
    partial: float | None = None,
) -> RopeTable:
    """A config's table, in either spelling: `rope_parameters` (transformers 5), `rope_theta` and `rope_scaling` (4).

    kind_of_layer: a name of `layer_types`, where each kind has a table of its own. theta: the default base frequency.
    partial: the default part of each head that is rotated, None if the architecture rotates whole heads only.
    InputError names a scaling that is not supported.
    """
    settings = _settings(config, kind_of_layer)
    kind = settings.text("rope_type", settings.text("type", "default"))
    base = settings.number("rope_theta", config.number("rope_theta", theta, THETA), THETA)
    factor = config.number("partial_rotary_factor", config.number("rotary_pct", partial or 1.0))
    factor = settings.number("partial_rotary_factor", factor)
    if partial is None and factor != 1:
        raise InputError(f"{config.origin}: rotary embedding of a part of each head ({factor:g}) is not supported")
    width = int(head_dim * factor + 1e-6)
    if width < 2 or width % 2 or width > head_dim:
        raise InputError(f"{config.origin}: a rotary embedding of {width} of the {head_dim} channels of a head")
    if kind not in _KINDS:
        raise InputError(f"{config.origin}: rope type {kind} is not supported ({', '.join(_KINDS)} are)")
    scaled = _KINDS[kind](_Rope(settings, config, base, width))
    text = f"theta {base:g}" + (f", {scaled.text}" if scaled.text else "")
    text += f", {width} of {head_dim} channels" if width != head_dim else ""
    frequencies, short = (tuple(map(float, f.astype(np.float32))) for f in (scaled.frequencies, scaled.short))
    return RopeTable(frequencies, scaled.magnitude, text, scaled.short_context, short)


def _settings(config: Config, kind_of_layer: str | None) -> Config:
    rope = config.section("rope_parameters")
    if rope.values and kind_of_layer is not None and isinstance(rope.values.get(kind_of_layer), dict):
        return rope.section(kind_of_layer)
    return rope if rope.values else config.section("rope_scaling")


def _default(rope: _Rope) -> _Scaled:
    return _Scaled(rope.plain)


def _dynamic(rope: _Rope) -> _Scaled:
    """Up to the trained context, which is the context of a compiled model, nothing is stretched."""
    return _Scaled(rope.plain, text="dynamic")


def _linear(rope: _Rope) -> _Scaled:
    """Every frequency divided by `factor`."""
    factor = rope.settings.number("factor", within=FACTOR)
    return _Scaled(rope.plain / np.float32(factor), text=f"linear({factor:g})")


def _llama3(rope: _Rope) -> _Scaled:
    """Low frequencies divided by `factor`, high ones kept, a smooth ramp between (Llama 3.1)."""
    factor, context = rope.settings.number("factor", within=FACTOR), rope.original_context
    low, high = (rope.settings.number(f"{end}_freq_factor", within=FACTOR) for end in ("low", "high"))
    if low >= high:
        raise InputError(f"{rope.settings.origin}: low_freq_factor must be smaller than high_freq_factor")
    frequencies = rope.plain
    wavelengths = 2 * math.pi / frequencies
    stretched = np.where(wavelengths > context / low, frequencies / factor, frequencies)
    smooth = (context / wavelengths - low) / (high - low)
    between = (1 - smooth) * stretched / factor + smooth * stretched
    medium = (wavelengths >= context / high) & (wavelengths <= context / low)
    return _Scaled(np.where(medium, between, stretched), text=f"llama3({factor:g}, {low:g}..{high:g}, {context})")


def _yarn(rope: _Rope) -> _Scaled:
    """Peng et al., "YaRN" (2023): frequencies that turn often are kept, those that turn seldom divided by `factor`."""
    settings, context, width = rope.settings, rope.original_context, rope.width
    factor = settings.number("factor", rope.config.integer("max_position_embeddings", context) / context, FACTOR)
    mscale, mscale_all = settings.values.get("mscale"), settings.values.get("mscale_all_dim")
    if mscale and mscale_all:
        magnitude = _attention_scale(factor, settings.number("mscale"))
        magnitude /= _attention_scale(factor, settings.number("mscale_all_dim"))
    else:
        magnitude = _attention_scale(factor)
    turns = [settings.number("beta_fast", 32.0), settings.number("beta_slow", 1.0)]
    ends = [width * math.log(context / (n * 2 * math.pi)) / (2 * math.log(rope.theta)) for n in turns]
    if settings.flag("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    low, high = max(ends[0], 0), min(ends[1], width - 1)
    places = np.arange(width // 2, dtype=np.float32)
    ramp = np.clip((places - np.float32(low)) / np.float32((high - low) or 0.001), 0, 1).astype(np.float32)
    kept = 1 - ramp
    periods = np.power(np.float32(rope.theta), np.arange(0, width, 2).astype(np.float32) / np.float32(width))
    frequencies = (1 / (np.float32(factor) * periods)) * (1 - kept) + (1 / periods) * kept
    return _Scaled(frequencies, rope.magnitude(magnitude), f"yarn({factor:g}, {context})")


def _attention_scale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(rope: _Rope) -> _Scaled:
    """Ding et al., "LongRoPE" (2024): a divisor for each pair, others for contexts that are not stretched."""
    settings, context = rope.settings, rope.original_context
    longest = rope.config.integer("max_position_embeddings", context)
    factor = settings.number("factor", longest / context, FACTOR)
    magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(context))
    exponents = np.arange(0, rope.width, 2, dtype=np.int64).astype(np.float32) / np.float32(rope.width)
    plain = np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    short, long = (np.float32(1) / (_divisors(rope, f"{name}_factor") * plain) for name in ("short", "long"))
    magnitude = rope.magnitude(magnitude)
    if longest <= context:
        return _Scaled(short, magnitude, f"longrope(short, {context})")
    return _Scaled(long, magnitude, f"longrope({context})", context, short)


def _divided(rope: _Rope) -> _Scaled:
    """A divisor for each pair, which GGUF files store in place of llama3's parameters."""
    return _Scaled(rope.plain / _divisors(rope, "divisors"), text="divided")


def _divisors(rope: _Rope, name: str) -> np.ndarray:
    divisors, pairs = rope.settings.items(name), rope.width // 2
    if len(divisors) != pairs or not all(d in FACTOR for d in divisors):
        raise rope.settings.fault(name, f"a list of {pairs} positive numbers, one for each pair of channels")
    return np.asarray(divisors, np.float32)


_KINDS: dict[str, Callable[[_Rope], _Scaled]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "divided": _divided,
}
