"""Speech recognition: what a sound says; a decoder writes it, or each frame has scores of letters (CTC)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from coldpress.measuring.agreement import Spoken


class SpeechRecognition(Spoken):
    """Compared on made-up voices, token by token of what the source hears, or frame by frame."""

    title = "speech recognition"
    pipeline = "automatic-speech-recognition"
    loader = "AutoModelForSpeechSeq2Seq"
    classes = (
        "ForCTC",
        "WhisperForConditionalGeneration",
        "Speech2TextForConditionalGeneration",
        "MoonshineForConditionalGeneration",
    )
    seen_on = "Whisper tiny.en, by word errors; a tiny Whisper and Wav2Vec2"
    labelled = "audio"

    def completed(
        self, folder: Path, inputs: Mapping[str, np.ndarray], speak: Callable[..., list[int]]
    ) -> dict[str, np.ndarray]:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return super().completed(folder, inputs, speak) if settings.get("is_encoder_decoder") else dict(inputs)

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores for each token that the source says, or for each frame."""
        if "decoder_input_ids" in inputs:
            return super().answers(folder, inputs, outputs)
        return list(outputs["logits"].reshape(-1, outputs["logits"].shape[-1]))
