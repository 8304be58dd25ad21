"""Values that a JSON file can hold where a number, a text or a list is expected."""

from __future__ import annotations

import json
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, -1, -(2**31), 2**31, 2**31 - 1, 2**32 + 5, 2**53 + 1, 2**63, 2**64, 10**400),
    *(0.0, -0.5, 0.5, 2.0, 1e-320, 1e-45, 1e38, 1e300, float("nan"), float("inf"), -float("inf")),
)
OTHERS: tuple[Any, ...] = (
    *(True, False, "", "1", "nan", "\ud800", [], [1], [[2]], [True], [None], ["x"], {}, {"a": 1}, {"": {}}),
)
NESTED: tuple[Any, ...] = (json.loads("[" * 900 + "]" * 900), json.loads('{"a":' * 900 + "1" + "}" * 900))

VALUES = (*NUMBERS, *OTHERS, *NESTED)
