"""Which of some texts fits a picture: two networks whose vectors are compared, as those of CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored


class ZeroShotImageClassification(Scored):
    """Compared on made-up pictures beside held-out sentences. The graph has both networks, and their vectors as outputs
    (``image_embeds``, ``text_embeds``)."""

    title = "classification of pictures by texts"
    pipeline = "zero-shot-image-classification"
    loader = "AutoModelForZeroShotImageClassification"
    classes = ("CLIPModel", "MetaClip2Model", "SiglipModel", "Siglip2Model", "AlignModel")
    seen_on = "a tiny CLIP"

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores of the texts for each picture."""
        return list(outputs["logits_per_image"])
