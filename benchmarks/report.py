"""docs/benchmarks.md and the README's table from the results in benchmarks/results/.

    python -m benchmarks.report            # write both
    python -m benchmarks.report --check    # exit 1 where one is not what the results say

Each section is a benchmark of its own. Run it with `--publish` to replace its results.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import publish

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
BEGIN, END = "<!-- peers: python -m benchmarks.report writes this table -->\n", "<!-- end of peers -->\n"

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
        "embedding, head, scales, zeros and padding. KL divergence is in nats. llama.cpp's rows are from an "
        "earlier study.",
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


PEERS = ("smc", "llama.cpp", "OpenVINO GenAI", "MLC-LLM", "ExecuTorch")
NONE = "not measured"
FEATURES = (
    (
        "targets",
        "x86-64 and ARM CPUs: Linux, Android, macOS as a library",
        "17 backends, CPU and GPU",
        "Intel CPU, GPU, NPU; ARM CPU",
        "GPU, WebGPU; no CPU preset",
        "phones: CPU, GPU, NPU",
    ),
    ("your own format", "one Python class", "C for each instruction set", "in its tools", "in its tree", "in torchao"),
    ("ternary weights", "any grouping, 1.6 or 2 bits", "blocks of 256", "–", "–", "–"),
    ("same bits for any threads and batch", "yes, tested", NONE, NONE, NONE, NONE),
    ("same bytes from the same inputs", "yes, tested", NONE, NONE, NONE, NONE),
    ("OpenAI server, tools, grammars", "yes", "yes", "yes", "yes", "examples"),
)
"""Rows that need no measurement; those of others are from their source trees."""


def speeds() -> tuple[list[list[str]], str]:
    """The measured rows for smc, llama.cpp and OpenVINO GenAI, and where they come from."""
    name = "peers" if (publish.RESULTS / "peers.json").exists() else "llama_cpp"
    published = publish.read(name)
    rows = published.tables[0].rows
    if name == "llama_cpp":  # OpenVINO GenAI was not measured with it
        cases = {f"SmolLM2 {case}, 2 threads": case for case in ("decode 64", "prefill 128", "prefill 512")}
        rows = [[f"{cases[row[0]]}, tokens/s", *row[1:3], NONE] for row in rows if row[0] in cases]
    return rows, f"{published.machine}, {published.date}"


def qualities() -> list[list[str]]:
    """The rows of quality for smc, llama.cpp and OpenVINO GenAI, each figure with its bits per weight."""
    found = {row[0]: f"{row[3]} ({row[1]})" for row in publish.read("quality").tables[0].rows}
    four = f"Q4_0: {found['llama.cpp Q4_0']}, Q4_K_M: {found['llama.cpp Q4_K_M']}"
    return [
        ["loss with 8 bits (bits per weight)", found["`int8`"], found["llama.cpp Q8_0"], NONE],
        ["loss with 4 bits (bits per weight)", found["`int4`"], four, NONE],
    ]


def peers() -> str:
    """The README's table with a line that says what its figures are."""
    measured, source = speeds()
    rows = [[*row, NONE, NONE] for row in [*measured, *qualities()]] + [list(row) for row in FEATURES]
    table = publish.Table("", ["", *PEERS], rows).markdown().replace("---:", "---")
    note = (
        f"SmolLM2-135M. Speed: 4.5 bits per weight, two threads; {source}. Loss: mean KL divergence from fp32, "
        "in nats (llama.cpp's from an earlier study). Features of the others are from their sources: llama.cpp 0.5.0, "
        "OpenVINO GenAI of 2026-08-21, MLC-LLM of 2026-07-23, ExecuTorch of 2026-08-22. How to repeat this: "
        "[docs/benchmarks.md](docs/benchmarks.md)."
    )
    return f"{table}\n\n{textwrap.fill(note, 128, break_on_hyphens=False)}\n"


def readme() -> str:
    """The README with its table."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{peers()}{END}{rest.partition(END)[2]}"


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; compare.")
def main(check: bool) -> None:
    """Write or compare both."""
    for file, text in ((PAGE, page()), (README, readme())):
        if not check:
            file.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            sys.exit(f"{file.name} is not what benchmarks/results say: run `python -m benchmarks.report`")


if __name__ == "__main__":
    main()
