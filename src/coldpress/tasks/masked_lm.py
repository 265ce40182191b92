"""Masked language modelling: which token was hidden behind a mask."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored
from coldpress.models.tokenizers.tokenizer import has_tokenizer, pretrained_tokenizer

#: of so many tokens one is hidden, as in the training of such models, and it is not the first
_EVERY, _FIRST = 7, 3


class MaskedLm(Scored):
    """Compared on held-out sentences, of which one token in seven is hidden."""

    title = "masked language modelling"
    pipeline = "fill-mask"
    loader = "AutoModelForMaskedLM"
    classes = ("ForMaskedLM",)
    seen_on = "the ALBERT of rxnmapper; a tiny ALBERT"

    def examples(
        self, folder: Path, takes: Collection[str], files: Sequence[str] = (), trust_remote_code: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        mask = pretrained_tokenizer(folder, trust_remote_code).mask_token_id if has_tokenizer(folder) else None
        for batch in super().examples(folder, takes, files, trust_remote_code):
            if mask is not None:
                batch["input_ids"][_hidden(batch)] = mask
            yield batch

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores of the vocabulary for each hidden token."""
        return list(outputs["logits"][_hidden(inputs)])


def _hidden(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which tokens are hidden, ``[texts, tokens]``; none of the padding."""
    ids = batch["input_ids"]
    shown = batch.get("attention_mask", np.ones_like(ids)) == 1
    return shown & (np.arange(ids.shape[1]) % _EVERY == _FIRST)
