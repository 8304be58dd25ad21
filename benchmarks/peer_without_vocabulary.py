"""Runs llama.cpp's converter on checkpoints whose tokenizer it does not know, and leaves the vocabulary out.

    python -m benchmarks.peer_without_vocabulary CONVERTER ARGUMENT…

What comes out serves to time and to compare logits: both feed numbers of tokens and need no text.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the converter named first with the arguments behind it."""
    convert(Path(sys.argv[1]), sys.argv[2:])


def convert(converter: Path, arguments: Sequence[str]) -> None:
    """Run the converter, a script, in this process."""
    sys.path.insert(0, str(converter.parent))
    conversion = importlib.import_module("conversion")
    find = conversion.get_model_class

    def without_vocabulary(*names: Any, **options: Any) -> Any:
        found = find(*names, **options)
        found.set_vocab = _say_its_size
        return found

    conversion.get_model_class = without_vocabulary
    sys.argv = [str(converter), *arguments]
    runpy.run_path(str(converter), run_name="__main__")


def _say_its_size(model: Any) -> None:
    """All that the file says of its vocabulary."""
    model._set_vocab_none()
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


if __name__ == "__main__":
    main()
