"""docs/benchmarks.md from the results in benchmarks/results/.

    python -m benchmarks.report            # write the page
    python -m benchmarks.report --check    # exit 1 where the page is not what the results say

Each section is a benchmark of its own. Run it with `--publish` to replace its results.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import publish

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

This page is generated: `python -m benchmarks.report` writes it from `benchmarks/results/`. A clone suffices to repeat
every figure. The scripts bring models and texts, and build the peer, llama.cpp, from the source in PyPI's
`llama-cpp-python==0.3.36`. The machine is a shared virtual machine with two cores: ratios hold, absolute times drift
with what the neighbours do. [limits.md](limits.md) says what bounds the figures."""


@dataclass(frozen=True)
class Section:
    """Benchmarks that belong together: names of their results, what the tables show, and the commands."""

    names: tuple[str, ...]
    heading: str
    text: str
    commands: tuple[str, ...]

    def markdown(self) -> str:
        """Heading, text, commands, tables and where they come from."""
        parts = [f"## {self.heading}", textwrap.fill(self.text, 118, break_on_hyphens=False)]
        parts.append("\n".join(["```sh", *self.commands, "```"]))
        for published in map(publish.read, self.names):
            parts += [table.markdown() for table in published.tables]
            parts.append(f"Measured {published.date} at commit {published.commit}: {published.machine}.")
        return "\n\n".join(parts)


SECTIONS = (
    Section(
        ("llama_cpp",),
        "Speed beside llama.cpp",
        "Tokens per second, medians of alternating rounds; the ratio is the median of single rounds. Both "
        "programs use an f16 cache and 4.5 bits per weight (`int4-plain`, pure Q4_0); `int4` has 4.98, ternary 2. "
        'llama.cpp counts with the better of its flash attention on and off. "@ 512" means behind 512 tokens. '
        "TinyLlama stands for its shape, with random weights. Numbers in brackets are multiples of the first row "
        "of their kind.",
        ("python -m benchmarks.llama_cpp --publish",),
    ),
    Section(
        ("quality",),
        "Quality",
        "SmolLM2-135M off the grid of the 4-bit file that it was published in, against transformers in fp32 "
        "(perplexity 18.18): 100 windows of 512 tokens of Wikipedia, the second half of each scored. Bits count "
        "embedding, head, scales, zeros and padding. KL divergence is in nats.",
        (
            "python -m benchmarks.quality --quant int8 --quant int4 --quant int4-plain "
            "--peer Q8_0 --peer Q4_K_M --peer Q4_0 --publish",
        ),
    ),
    Section(
        ("encodings",),
        "Encodings",
        "Matmul kernels alone, 2 threads. GB/s: one token by 320 MB of weights from memory, and the share of "
        "plain reads of the same bytes. GMAC/s: 128 tokens by 2048×2048. The AVX-VNNI columns run AVX-512's "
        "encoding of the same instructions; no CPU with AVX-VNNI was at hand. Without `--publish` the command "
        "shows all 30 encodings.",
        ("python -m benchmarks.encodings --publish",),
    ),
    Section(
        ("instructions", "instructions_mca"),
        "64-bit ARM",
        "No ARM board was at hand, so these are counts, not speeds. First, millions of executed instructions per "
        "token of SmolLM2 `int4-plain` on one thread; llama.cpp is cross-built for each level. Second, millions "
        "of cycles per token in the loops counted above, as if all data lay in the first cache.",
        (
            "python -m benchmarks.instructions --prefill 128 --publish",
            "python -m benchmarks.instructions_mca --publish",
        ),
    ),
    Section(
        ("compile",),
        "Compiling, loading, starting",
        "Cold means empty caches. Memory is the peak of the whole process tree.",
        ("python -m benchmarks.compile --publish",),
    ),
)


def page() -> str:
    """The whole page."""
    return "\n\n".join([INTRODUCTION, *(section.markdown() for section in SECTIONS)]) + "\n"


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; compare.")
def main(check: bool) -> None:
    """Write or compare the page."""
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/benchmarks.md is not what benchmarks/results say: run `python -m benchmarks.report`")


if __name__ == "__main__":
    main()
