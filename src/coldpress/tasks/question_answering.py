"""Question answering: where in a text the answer to a question begins, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored


class QuestionAnswering(Scored):
    """Compared on held-out sentences, alone and in pairs: a sentence takes the place of a question."""

    title = "question answering"
    pipeline = "question-answering"
    loader = "AutoModelForQuestionAnswering"
    classes = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    seen_on = "a tiny BERT"
    takes_pairs = True

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """For each text the scores of its tokens, padding left out: that the answer begins there, and that it ends."""
        shown = inputs["attention_mask"] == 1
        ends = [outputs["start_logits"], outputs["end_logits"]]
        return [scores[text][shown[text]] for text in range(len(shown)) for scores in ends]
