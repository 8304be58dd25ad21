"""Parts of a model's config.json that several architectures read in the same way."""

from __future__ import annotations

from smc.fields import MOST_CONTEXT, Fields, Range

Config = Fields
"""A config.json, or a GGUF's metadata spelled like one."""

CONTEXT = Range(1, MOST_CONTEXT, f"a positive integer, at most {MOST_CONTEXT:,}")
THETA = Range(1, 1e30, "a number from 1 to 1e30")
FACTOR = Range(1e-6, 1e6, "a positive number from 1e-6 to 1e6")
"""Within these bounds, frequencies times positions stay finite in float32."""
