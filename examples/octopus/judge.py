"""How often a model calls the right function, and with the right argument, on the queries of test.jsonl (greedy).

    python examples/octopus/judge.py octopus.smc test.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import smc

CALL = re.compile(r"(<fn_\d+>)\((.*?)\)")


def main(model: str, test: Path) -> None:
    """Print the two shares, and the queries that went wrong."""
    right = exact = total = 0
    with smc.load(model) as artifact:
        tokenizer = artifact.tokenizer
        for line in test.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            ids = list(tokenizer.encode(entry["prompt"]).ids)
            answer = artifact.generate(ids, max_tokens=16, temperature=0.0)
            made = CALL.search(tokenizer.decode(answer.tokens, skip_special_tokens=False))
            wanted = CALL.search(entry["completion"])
            assert wanted is not None
            total += 1
            right += made is not None and made[1] == wanted[1]
            exact += made is not None and made.groups() == wanted.groups()
            if made is None or made.groups() != wanted.groups():
                print(f"{entry['prompt']!r}: {made and made[0]}, not {wanted[0]}")
    print(f"right function: {100 * right / total:.1f} %; and right argument: {100 * exact / total:.1f} % of {total}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
