"""Runs artifacts. This needs numpy, tokenizers and jinja2, but neither torch nor tvm nor the compiler.

`load(path)` opens one; `Model` is what it returns.
"""

from smc.runtime.model import Model, Sequence, load

__all__ = ["Model", "Sequence", "load"]
