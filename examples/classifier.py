"""Labels for texts, one per line: the model can answer with nothing but a label.

    python examples/classifier.py smollm2.smc positive,negative < reviews.txt

A model without a chat template continues "Text: … Label:".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import smc
from smc.runtime import Model
from smc.structured.constraint import Grammars
from smc.structured.grammar import Grammar

QUESTION = "Which label fits the text best: {labels}? Answer with the label alone.\n\nText: {text}"


class Classifier:
    """Chooses one of some labels."""

    def __init__(self, model: Model, labels: Sequence[str]) -> None:
        self._model = model
        self._labels = labels
        self._grammars = Grammars(model)
        self._grammar = Grammar("lark", f"start: {' | '.join(map(json.dumps, labels))}\n")

    def label(self, text: str) -> str:
        """The label of a text."""
        if self._model.has_chat_template:
            question = QUESTION.format(labels=", ".join(self._labels), text=text)
            prompt = self._model.apply_chat_template([{"role": "user", "content": question}])
        else:
            prompt = self._model.encode(f"Text: {text}\nLabel: ")
        constraint = self._grammars.constraint(self._grammar)
        return self._model.generate(prompt, constraint=constraint, temperature=0.0).text


def main(artifact: str, labels: str) -> None:
    """Print a label for every line of standard input."""
    with smc.load(artifact) as model:
        classifier = Classifier(model, labels.split(","))
        for line in sys.stdin:
            print(classifier.label(line.strip()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
