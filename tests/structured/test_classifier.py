"""examples/classifier.py chooses the label that the model finds likelier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import smc
from smc.runtime.token_texts import TokenTexts

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_classifier(artifact: Path):
    labels = ["good", "bad", "unknown"]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "classifier.py", artifact, ",".join(labels)],
        input="a fine day\nit rained\n", check=True, capture_output=True, text=True,
    )  # fmt: skip
    answered = done.stdout.split()
    with smc.load(artifact, threads=1) as model:
        texts = TokenTexts(model.tokenizer)
        for text, label in zip(("a fine day", "it rained"), answered, strict=True):
            logits = model.logits(model.encode(f"Text: {text}\nLabel: "))[-1]
            begins = {
                token: name
                for token in range(model.vocab_size)
                for name in labels
                if (start := texts.text_of(token)) and name.startswith(start)
            }
            first = max(begins, key=lambda token: logits[token])
            assert label in labels and label.startswith(texts.text_of(first))
