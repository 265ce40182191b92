"""Multiple choice: which of several texts goes on from another, or answers it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored


class MultipleChoice(Scored):
    """Compared on held-out sentences, three or four to choose from."""

    title = "multiple choice"
    pipeline = "multiple-choice"
    loader = "AutoModelForMultipleChoice"
    classes = ("ForMultipleChoice",)
    seen_on = "a tiny BERT"
    takes_pairs = True

    def examples(
        self, folder: Path, takes: Collection[str], files: Sequence[str] = (), trust_remote_code: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """Arrays ``[samples, choices, tokens]``: each text of a batch stands first once, before others of it."""
        for number, batch in enumerate(super().examples(folder, takes, files, trust_remote_code)):
            turns = range(3 + number % 2)
            yield {name: np.stack([np.roll(array, turn, axis=0) for turn in turns], axis=1)
                   for name, array in batch.items()}  # fmt: skip

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores of the choices for each sample."""
        return list(outputs["logits"])
