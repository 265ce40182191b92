"""Text classification: a class for a text or a pair of texts, such as a sentiment, or whether one follows from another.

Where config.json says that several labels may hold at once, each of them is a question of its own; a single output is
a number, such as a similarity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored


class TextClassification(Scored):
    """Compared on held-out sentences, alone and in pairs."""

    title = "text classification"
    pipeline = "text-classification"
    names = ("sentiment-analysis",)
    loader = "AutoModelForSequenceClassification"
    classes = ("ForSequenceClassification",)
    seen_on = "a tiny BERT"
    labelled = "text_classification"
    takes_pairs = True

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores for each text, or for each label of it: that it holds, and that it does not."""
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        scores = outputs["logits"]
        if settings.get("problem_type") == "multi_label_classification":
            return [np.array([score, 0.0], np.float32) for score in scores.reshape(-1)]
        return list(scores)
