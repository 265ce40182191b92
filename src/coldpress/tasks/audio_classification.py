"""Audio classification: a class for a sound, such as a word of command, a language or a mood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Scored

#: networks for sounds whose class is called as those for texts are
_OF_SOUNDS = (
    "Data2VecAudio",
    "Hubert",
    "SEW",
    "SEWD",
    "UniSpeech",
    "UniSpeechSat",
    "Wav2Vec2",
    "Wav2Vec2Bert",
    "Wav2Vec2Conformer",
    "WavLM",
)


class AudioClassification(Scored):
    """Compared on made-up voices."""

    title = "audio classification"
    pipeline = "audio-classification"
    loader = "AutoModelForAudioClassification"
    classes = ("ForAudioClassification", *(f"{name}ForSequenceClassification" for name in _OF_SOUNDS))
    seen_on = "a tiny Wav2Vec2 and AST"
    labelled = "audio"

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores for each sound."""
        return list(outputs["logits"])
