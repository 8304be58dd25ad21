"""manifest.json, the facts in an artifact (docs/artifact.md), for the compiler and for readers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.fields import COUNT, MOST_CONTEXT, Fields, Range, is_integer, parse_json
from smc.generation import GenerationDefaults

MANIFEST = "manifest.json"
FORMAT = "smc"
FORMAT_VERSION = 2

_CONTEXT = Range(1, MOST_CONTEXT, f"a positive integer, at most {MOST_CONTEXT:,}")
_SIZE = Range(0, (1 << 63) - 1, "a whole number below 2^63")
_DIFFERENCE = Range(0, 1, "a number from 0 to 1")
_NATS = Range(-1e6, 1e6, "a number up to 1,000,000")
_SHARE = Range(0, 1e30, "a number that is not negative")
_BITS = Range(0, 1e6, "a number from 0 to 1,000,000")


@dataclass(frozen=True)
class FileFacts:
    """A member of the archive, or the executable in front of it."""

    sha256: str
    bytes: int

    @classmethod
    def read(cls, values: Fields) -> FileFacts:
        """Read it from a manifest. InputError for a wrong type or range."""
        return cls(values.text("sha256"), values.integer("bytes", within=_SIZE))


@dataclass(frozen=True)
class LevelFacts:
    """A feature level of the program; features have LLVM's names."""

    name: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class TuningFacts:
    """candidates: those that tuning records chose, by kernel. records: the SHA-256 of the records, or None."""

    candidates: dict[str, str] = field(default_factory=dict)
    records: str | None = None


@dataclass(frozen=True)
class ProofFacts:
    """Whether the program's logits were compared with the reference's before the file got its name.

    reason: why not. level: the level that ran. emulator: the program that ran it; None on a real machine. tokens: how
    many. difference: that of the logits, relative to their norm; 0: equal bits. Manifests leave out what depends on the
    machine.
    """

    verified: bool
    reason: str | None = None
    level: str | None = None
    emulator: str | None = None
    tokens: int | None = None
    difference: float | None = None

    @classmethod
    def read(cls, values: Fields) -> ProofFacts:
        """Read it from a manifest. InputError for a wrong type or range."""
        return cls(
            verified=values.flag("verified"),
            reason=values.text("reason") if "reason" in values else None,
            level=values.text("level") if "level" in values else None,
            emulator=values.text("emulator") if "emulator" in values else None,
            tokens=values.integer("tokens", within=_SIZE) if "tokens" in values else None,
            difference=values.number("difference", within=_DIFFERENCE) if "difference" in values else None,
        )

    def __str__(self) -> str:
        """For people."""
        if not self.verified:
            return f"no: {self.reason}" if self.reason else "no"
        if self.difference is None:
            equal = "close to the reference's"
        else:
            equal = (
                f"within {self.difference:.1g} of the reference's"
                if self.difference
                else "the reference's, bit for bit"
            )
        where = f" ({self.level}{f', under {self.emulator}' if self.emulator else ''})" if self.level else ""
        return f"yes: the logits of {self.tokens} tokens are {equal}{where}"

    def on_any_machine(self) -> ProofFacts:
        """The entries of a manifest, without those that depend on the machine that ran the program, so that files are
        equal."""
        return replace(self, level=None, emulator=None, difference=None if self.difference else self.difference)


@dataclass(frozen=True)
class MatrixQuality:
    """bits: of a code. error: the distance of a matrix's values from those before they were quantized, as part of their
    norm.

    costs: by the bits of a code, the KL divergence that each width was expected to add, where widths were chosen so.
    """

    bits: int
    error: float
    costs: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Fields) -> MatrixQuality:
        """From a manifest. InputError for a wrong type or range."""
        costs = values.section("costs") if "costs" in values else Fields({}, values.origin)
        return cls(
            values.integer("bits"),
            values.number("error", within=_SHARE),
            {bits: costs.number(bits, within=_NATS) for bits in costs.values},
        )

    def cost(self, further: int = 0) -> float | None:
        """What the chosen width was expected to cost, or the one so many places further up (down: negative); None where
        there is none."""
        widths = sorted(self.costs, key=int)
        place = widths.index(str(self.bits)) + further if str(self.bits) in widths else -1
        return self.costs[widths[place]] if 0 <= place < len(widths) else None


@dataclass(frozen=True)
class QualityFacts:
    """What quantizing cost: the model beside the one before it, both in torch, on windows of a text held out from them.

    kl_divergence: the mean over the second halves, in nats, kl_error its standard error (None of a single window).
    perplexity and before: of the same tokens, by the model and by the one before. same_top: of the likeliest tokens.
    text: its name. matrices: by the parameter's name.
    """

    text: str
    windows: int
    window: int
    kl_divergence: float
    perplexity: float
    before: float
    same_top: float
    kl_error: float | None = None
    matrices: dict[str, MatrixQuality] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Fields) -> QualityFacts:
        """From a manifest. InputError for a wrong type or range."""
        matrices = values.section("matrices") if "matrices" in values else Fields({}, values.origin)
        return cls(
            text=values.text("text"),
            windows=values.integer("windows"),
            window=values.integer("window"),
            kl_divergence=values.number("kl_divergence", within=_NATS),
            perplexity=values.number("perplexity", within=_SHARE),
            before=values.number("before", within=_SHARE),
            same_top=values.number("same_top", within=_DIFFERENCE),
            kl_error=values.number("kl_error", within=_SHARE) if "kl_error" in values else None,
            matrices={name: MatrixQuality.read(matrices.section(name)) for name in matrices.values},
        )

    def __str__(self) -> str:
        """For people."""
        error = f" ± {self.kl_error:.2g}" if self.kl_error is not None else ""
        return (
            f"KL divergence {self.kl_divergence:.3g}{error}, perplexity {self.perplexity:.2f} from {self.before:.2f}, "
            f"{100 * self.same_top:.1f} % the same likeliest token, on {self.windows} windows of {self.window} tokens "
            f"of {self.text}"
        )


@dataclass(frozen=True)
class Manifest:
    """The entries of docs/artifact.md under their names there; those with a default may be missing in a file."""

    name: str
    target: str
    machine: str
    system: str
    context_length: int
    vocab_size: int
    weights: FileFacts
    program: FileFacts
    executable: FileFacts | None = None
    architecture: str | None = None
    layout_version: int | None = None
    levels: tuple[LevelFacts, ...] = ()
    parameters: int | None = None
    bits_per_weight: float | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    provenance: tuple[str, ...] = ()
    encodings: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tuning: TuningFacts | None = None
    proof: ProofFacts | None = None
    quality: QualityFacts | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, path: Path) -> Manifest:
        """Read the manifest from the member's text in the artifact `path`.

        InputError if it is not a manifest, has another version of the format, or an entry has a wrong type or range.
        """
        origin = f"{path} is damaged: {MANIFEST}"
        values = Fields(parse_json(text, origin), origin)
        if values.values.get("format") != FORMAT:
            raise InputError(f'{path} is not an smc artifact: {MANIFEST} does not say "format": "{FORMAT}"')
        if (version := values.values.get("format_version")) != FORMAT_VERSION or isinstance(version, (bool, float)):
            raise InputError(
                f"{path} has artifact format {version!r:.40}, this smc reads format {FORMAT_VERSION}; "
                "compile it again or install the smc that made it"
            )
        return cls(
            name=values.text("name"),
            target=values.text("target"),
            machine=values.text("machine"),
            system=values.text("system"),
            context_length=values.integer("context_length", within=_CONTEXT),
            vocab_size=values.integer("vocab_size"),
            weights=FileFacts.read(values.section("weights")),
            program=FileFacts.read(values.section("program")),
            executable=FileFacts.read(values.section("executable")) if "executable" in values else None,
            architecture=values.text("architecture") if "architecture" in values else None,
            layout_version=values.integer("layout_version") if "layout_version" in values else None,
            levels=_levels(values),
            parameters=values.integer("parameters", within=_SIZE) if "parameters" in values else None,
            bits_per_weight=values.number("bits_per_weight", within=_BITS) if "bits_per_weight" in values else None,
            special_tokens=values.text_by_name("special_tokens"),
            generation=GenerationDefaults.read(values.section("generation")),
            provenance=values.texts("provenance"),
            encodings=values.text_by_name("encodings"),
            shapes=_shapes(values),
            tuning=_tuning(values.section("tuning")) if "tuning" in values else None,
            proof=ProofFacts.read(values.section("proof")) if "proof" in values else None,
            quality=QualityFacts.read(values.section("quality")) if "quality" in values else None,
            versions=values.text_by_name("versions"),
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest as `parse` takes it; entries without a value are left out."""
        entries = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}
        return {"format": FORMAT, "format_version": FORMAT_VERSION} | {
            name: value for name, value in entries.items() if value is not None
        }

    def text(self) -> str:
        """The member's text; the same facts give the same bytes."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """A value as JSON's types."""
    if isinstance(value, GenerationDefaults):
        return value.to_json()
    if isinstance(value, (FileFacts, LevelFacts, MatrixQuality, ProofFacts, QualityFacts, TuningFacts)):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _levels(values: Fields) -> tuple[LevelFacts, ...]:
    levels = []
    for level in values.items("levels"):
        if not isinstance(level, dict):
            raise values.fault("levels", "a list of objects")
        entry = Fields(level, f"{values.origin}: levels")
        levels.append(LevelFacts(entry.text("name"), entry.texts("features")))
    return tuple(levels)


def _shapes(values: Fields) -> dict[str, tuple[int, ...]]:
    shapes = values.section("shapes")
    for name, shape in shapes.values.items():
        if not isinstance(shape, list) or not all(is_integer(dim, COUNT) for dim in shape):
            raise shapes.fault(name, "a list of positive integers")
    return {name: tuple(shape) for name, shape in shapes.values.items()}


def _tuning(values: Fields) -> TuningFacts:
    return TuningFacts(values.text_by_name("candidates"), values.text("records") if "records" in values else None)
