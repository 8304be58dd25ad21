"""Converts folders by llama.cpp's converter: python -m tests.frontend.llama_cpp_convert CONVERTER FOLDER…

Each becomes FOLDER.gguf, of float32; for those that it does not take, FOLDER.refused has its error. The converter
brings a `gguf` package of its own, so it wants a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peer_without_vocabulary import convert

if __name__ == "__main__":
    converter, *folders = map(Path, sys.argv[1:])
    for folder in folders:
        out = folder.with_name(f"{folder.name}.gguf")
        try:
            convert(converter, [str(folder), "--outtype", "f32", "--outfile", str(out)])
        except Exception as error:  # whatever it raises is its refusal, which the test expects by its words
            folder.with_name(f"{folder.name}.refused").write_text(f"{type(error).__name__}: {error}")
            out.unlink(missing_ok=True)
