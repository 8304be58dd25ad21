"""Without NVRTC there is nothing to compile with."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.cuda_nvrtc") is None:
    pytest.skip("NVRTC is not installed: pip install 'smc-compiler[cuda]'", allow_module_level=True)
