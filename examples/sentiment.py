"""A class that is loaded once per worker: a tiny word list that says how happy a text is.

penstock serve examples/sentiment.py:Sentiment
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import penstock

WORDS = {"good": 1.0, "great": 2.0, "love": 2.0, "bad": -1.0, "awful": -2.0, "hate": -2.0}


@penstock.model(inputs={"text": "str[n]"}, outputs={"score": "f4[n]"}, batch=penstock.Batch(max_size=32))
class Sentiment:
    """`text` comes as `str`, because it is declared `str`; declared `bytes` it would come as bytes."""

    def load(self, artifact: Path, context: object) -> None:
        """`artifact` is this file's folder, or what `options.artifact` says."""
        self.words = dict(WORDS)

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, list[float]]:
        return {"score": [sum(self.words.get(word, 0.0) for word in text.lower().split()) for text in inputs["text"]]}
