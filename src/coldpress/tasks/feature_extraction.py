"""Feature extraction: vectors of texts and tokens, or of pictures, for search and for models of one's own.

A folder of sentence-transformers says how the vectors of tokens become that of a text; the graph then has it as an
output, ``sentence_embedding``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.measuring.agreement import ComparedOnExamples, Rows, by_precision, of_vectors, ranking
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of
from coldpress.models.sentence_transformer import read_pooling
from coldpress.parts.task import Criterion


class FeatureExtraction(ComparedOnExamples):
    """Compared on held-out sentences, or made-up pictures: the vectors of texts where there are any, else all."""

    title = "feature extraction"
    pipeline = "feature-extraction"
    names = ("sentence-similarity", "image-feature-extraction")
    loader = "AutoModel"
    classes = ("Model", "ModelWithProjection")
    seen_on = "all-MiniLM-L6-v2; a tiny RoBERTa and BERT"
    criteria = (
        Criterion(
            "cosine",
            "Same direction",
            "cosine of a vector with the source's, on average",
            "higher",
            "cosine of the vectors with the source's",
            by_precision(0.99999, 0.9995, 0.998, 0.99, 0.9),
            why="MiniLM with 23 million weights has 1 - 4e-13 in float32, 0.9996 in int8 and 0.971 in int4",
        ),
        Criterion(
            "least_cosine",
            "Same direction, worst",
            "least cosine of a vector with the source's",
            "higher",
            "least cosine of a vector with the source's",
            by_precision(0.9999, 0.998, 0.99, 0.95, 0.6),
            why="one text that is lost hides in a mean; MiniLM's worst of 93 has 0.997 in int8 and 0.889 in int4",
        ),
        Criterion(
            "ranking",
            "Same neighbours",
            "Spearman's correlation of the similarities of all pairs of texts",
            "higher",
            "correlation of the similarities of texts with the source's",
            by_precision(0.9999, 0.999, 0.995, 0.99, 0.9),
            why="search needs the order of neighbours; MiniLM keeps 0.9996 in int8 and 0.979 in int4",
            may_lack=True,
        ),
    )

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Not for pairs of networks, such as encoder-decoders and CLIP's."""
        return not settings.get("is_encoder_decoder") and not {"text_config", "vision_config"} <= settings.keys()

    def check(self, source: Model | Planned) -> None:
        if (folder := settings_of(source)) is not None:
            read_pooling(folder)

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row for each text or picture that has one vector, else for each token or patch that is no padding."""
        for name in ("sentence_embedding", "text_embeds", "image_embeds"):
            if name in outputs:
                return list(outputs[name])
        tokens = outputs["last_hidden_state"]
        pooling = read_pooling(folder)
        if pooling is not None:
            return list(pooling.of(tokens, inputs["attention_mask"]))
        if "input_ids" in inputs and "attention_mask" in inputs:
            return list(tokens[inputs["attention_mask"] == 1])
        return list(tokens.reshape(-1, tokens.shape[-1]))

    def compare(self, expected: Rows, found: Rows) -> dict[str, float]:
        numbers = of_vectors(expected, found)
        return numbers if len(expected) > _MOST_RANKED else {**numbers, "ranking": ranking(expected, found)}


#: vectors beyond this number are of tokens, whose neighbours nobody looks for
_MOST_RANKED = 128
