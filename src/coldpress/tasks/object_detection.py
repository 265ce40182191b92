"""Object detection: what a picture shows, and in which boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import ComparedOnExamples, Rows, by_precision, of_boxes
from coldpress.parts.task import Criterion

#: objects of a picture that are compared: those that the source is surest of
_OBJECTS = 10


class ObjectDetection(ComparedOnExamples):
    """Compared on made-up pictures, by the ten boxes of each that the source is surest of."""

    title = "object detection"
    pipeline = "object-detection"
    loader = "AutoModelForObjectDetection"
    classes = ("ForObjectDetection",)
    seen_on = "a tiny YOLOS"
    criteria = (
        Criterion(
            "box_overlap",
            "Same boxes",
            "intersection over union of a box with the source's, on average",
            "higher",
            "overlap of the boxes with the source's",
            by_precision(0.999, 0.98, 0.95, 0.9, 0.6),
            why="COCO's strictest threshold is 0.95, which boxes of int8 should reach on average nearly; half an"
            " overlap, its loosest, is another box",
        ),
        Criterion(
            "object_agreement",
            "Same objects",
            "the model has the source's class, in a box that overlaps by more than half",
            "higher",
            "share of the source's objects that the model finds",
            by_precision(0.99, 0.98, 0.97, 0.95, 0.8),
            why="as of the labels of a classifier; a box counts as found as in PASCAL VOC",
            names=("agreement",),
            is_share=True,
        ),
    )

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """For each picture its boxes ``[boxes, 4 + classes]``: middle, width and height, then scores of classes."""
        return list(np.concatenate([outputs["pred_boxes"], outputs["logits"]], axis=2))

    def compare(self, expected: Rows, found: Rows) -> dict[str, float]:
        return of_boxes(expected, found, _OBJECTS)
