"""Token classification: a class for each token of a text, such as names of people and places, or parts of speech."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored


class TokenClassification(Scored):
    """Compared on the tokens of held-out sentences."""

    title = "token classification"
    pipeline = "token-classification"
    names = ("ner",)
    loader = "AutoModelForTokenClassification"
    classes = ("ForTokenClassification",)
    seen_on = "a tiny DistilBERT"
    labelled = "token_classification"

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores for each token that is no padding."""
        return list(outputs["logits"][inputs["attention_mask"] == 1])
