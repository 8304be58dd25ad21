"""Runs llama.cpp's converter on a Llama checkpoint whose tokenizer it does not know, and leaves the vocabulary out.

    python -m benchmarks.peer_without_vocabulary CONVERTER ARGUMENT…

What comes out serves to time: llama-bench feeds random tokens and needs no text.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the converter named first with the arguments behind it."""
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    llama = importlib.import_module("conversion.llama").LlamaModel
    llama.set_vocab = llama._set_vocab_none
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
