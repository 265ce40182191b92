"""Image segmentation: a class for each place of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import ComparedOnExamples, Rows, by_precision, of_maps
from coldpress.parts.task import Criterion


class ImageSegmentation(ComparedOnExamples):
    """Compared on made-up pictures, place by place. A network that gives masks with a class each (MaskFormer) is taken
    at the class that its masks together give a place."""

    title = "image segmentation"
    pipeline = "image-segmentation"
    names = ("semantic-segmentation",)
    loader = "AutoModelForSemanticSegmentation"
    classes = ("ForSemanticSegmentation", "ForUniversalSegmentation", "ForInstanceSegmentation", "ForSegmentation")
    seen_on = "a tiny SegFormer"
    criteria = (
        Criterion(
            "overlap",
            "Same regions",
            "intersection over union of the regions of a class with the source's, the mean over classes",
            "higher",
            "overlap of the regions with the source's",
            by_precision(0.99, 0.97, 0.95, 0.9, 0.6),
            why="two labellings of the same pictures by people overlap by about 0.9; half an overlap is another region",
        ),
        Criterion(
            "label_agreement",
            "Same label",
            "places with the source's class",
            "higher",
            "share of places with the source's label",
            by_precision(0.995, 0.985, 0.975, 0.95, 0.8),
            why="as of the labels of a classifier; there are so many places that chance has no part in it",
            names=("agreement",),
            is_share=True,
        ),
    )

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """For each picture the scores of the classes ``[classes, height, width]``."""
        if "logits" in outputs and "pred_masks" not in outputs:
            return list(outputs["logits"])
        classes, masks = ("class_queries_logits", "masks_queries_logits")
        if "pred_masks" in outputs:
            classes, masks = ("logits", "pred_masks")
        scores = np.exp(outputs[classes] - outputs[classes].max(axis=-1, keepdims=True))
        scores = (scores / scores.sum(axis=-1, keepdims=True))[..., :-1]  # the last class is: no object
        return list(np.einsum("pqc,pqhw->pchw", scores, 1 / (1 + np.exp(-outputs[masks]))))

    def compare(self, expected: Rows, found: Rows) -> dict[str, float]:
        return of_maps(expected, found)
