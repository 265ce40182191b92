"""WAV files for tests."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def write_sound(file: Path, samples: np.ndarray, width: int = 2, rate: int = 16000, channels: int = 1) -> None:
    """``samples`` from -1 to 1, the channels of each moment one after the other; ``width`` in bytes."""
    whole = np.round(samples * ((1 << (8 * width - 1)) - 1)).astype(np.int64)
    whole = whole + 128 if width == 1 else whole
    frames = whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(frames.tobytes())
