"""Write what the smart speaker's model learns from and is judged by: functions.json, train.jsonl and test.jsonl.

    python examples/speaker/make_data.py FOLDER

Every example is a query in the prompt of Octopus v2, and the call that answers it: `<fn_0>('kitchen', True)<fn_end>`.
The queries of the test have values that their sentence does not have in the training.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from smc.structured.functional_tokens import PROMPT
from smc.structured.functions import read_functions

HERE = Path(__file__).parent

SENTENCES: list[tuple[int, str, list[str], dict[str, Any]]] = [
    (0, "'{}', True", ["Turn on the light in the {}.", "Switch the {} light on.", "Make the {} bright."],
     {"values": ["kitchen", "bedroom", "hall"]}),
    (0, "'{}', False", ["Turn off the light in the {}.", "Switch the {} light off.", "Make the {} dark."],
     {"values": ["kitchen", "bedroom", "hall"]}),
    (1, "{}", ["Set the heating to {} degrees.", "Heat to {} degrees.", "I want it {} degrees warm."],
     {"values": ["17", "18", "19", "20", "21", "22", "23"]}),
    (2, "'{}'", ["What is the weather in {}?", "How is the weather in {}?", "Tell me the weather in {}."],
     {"values": ["Paris", "Rome", "Oslo", "Berlin", "Madrid", "Vienna"]}),
]  # fmt: skip
"""A function, its arguments, sentences that request it, and what is filled into them."""

HELD_OUT = 4
"""Every so many pairs of a sentence and a value one is for the test."""


def main(folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    functions = [
        {"name": function.name, "description": function.description} for function in read_functions(HERE / "home.py")
    ]
    (folder / "functions.json").write_text(json.dumps(functions, indent=2) + "\n", encoding="utf-8")
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for index, arguments, sentences, options in SENTENCES:
        pairs = itertools.product(sentences, options["values"])
        for number, (sentence, value) in enumerate(pairs):
            query = sentence.format(value)
            example = {
                "query": query,
                "prompt": PROMPT.format(query=query),
                "completion": f"<fn_{index}>({arguments.format(value)})<fn_end>",
            }
            lines["test" if number % HELD_OUT == HELD_OUT - 1 else "train"].append(json.dumps(example))
    random.Random(0).shuffle(lines["train"])
    for name, examples in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(examples) + "\n", encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(examples)} examples")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
