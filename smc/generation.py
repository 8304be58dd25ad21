"""A checkpoint's settings for generation: the tokens that end a text, and the defaults of sampling."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smc.fields import MOST, Fields, Range

_LEAST, _MOST = 5e-324, 1.7976931348623157e308  # the smallest positive float64

SAMPLING = {
    "temperature": Range(0, _MOST, "0 (greedy) or more"),
    "top_k": Range(0, MOST, "a whole number, 0 (all tokens) or more"),
    "top_p": Range(_LEAST, 1, "above 0 and at most 1"),
    "min_p": Range(0, 1, "from 0 to 1"),
    "repetition_penalty": Range(1e-30, 1e30, "from 1e-30 to 1e30"),
}
"""The ranges of sampling options; executables have the same (standalone/options.c)."""

END_TEXTS = (
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>",
    "<end_of_utterance>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "</s>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Tokens with these texts end a turn, a message or a text in every model that has them."""


@dataclass(frozen=True)
class GenerationDefaults:
    """A checkpoint's own settings; None for those that it lacks.

    eos_token_ids: the tokens that end a text. temperature … repetition_penalty: see `SamplingOptions`, in the ranges of
    SAMPLING. do_sample: false if the checkpoint prescribes greedy decoding, whatever else it says.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def read(cls, fields: Fields) -> GenerationDefaults:
        """Read the settings of generation_config.json or of a manifest's `generation`. InputError for a wrong type or
        range."""
        read: dict[str, Any] = dict.fromkeys(SAMPLING, fields.number) | {"top_k": fields.integer}
        numbers = {name: read[name](name, within=SAMPLING[name]) for name in SAMPLING if name in fields}
        bos, pad = fields.token_ids("bos_token_id"), fields.token_ids("pad_token_id")
        return cls(
            eos_token_ids=tuple(dict.fromkeys(fields.token_ids("eos_token_id"))),
            bos_token_id=bos[0] if bos else None,
            pad_token_id=pad[0] if pad else None,
            do_sample=fields.flag("do_sample") if "do_sample" in fields else None,
            **numbers,
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as `read` takes them, with Hugging Face's names."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        ends = values.pop("eos_token_ids")
        return {**({"eos_token_id": list(ends)} if ends else {}), **values}

    def sampling(self) -> dict[str, Any]:
        """The settings as keywords for `SamplingOptions`; they may prescribe greedy decoding."""
        chosen = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        samples = self.do_sample if self.do_sample is not None else self.temperature is not None
        if not samples:
            chosen["temperature"] = 0.0
        return {"temperature": 1.0, **chosen}
