"""Image classification: what a picture shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored


class ImageClassification(Scored):
    """Compared on made-up pictures: fields of soft colours, of the size that the model takes."""

    title = "image classification"
    pipeline = "image-classification"
    loader = "AutoModelForImageClassification"
    classes = ("ForImageClassification",)
    seen_on = "a tiny ViT and ResNet"
    labelled = "images"

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores for each picture."""
        return list(outputs["logits"])
