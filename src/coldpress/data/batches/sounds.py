"""Sounds as a model takes them, by transformers' own feature extractors; and voices that are made up."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError

_SETTINGS = "preprocessor_config.json"
#: frequencies of the first three formants of vowels, in Hz: as in "father", "see", "you", "bed", "law"
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
_WIDTH_HZ = 90.0


def extractor_of(folder: Path) -> Any:
    """The feature extractor of a model folder; None where there is none."""
    if not (folder / _SETTINGS).is_file():
        return None
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ColdpressError(f"{folder / _SETTINGS} cannot be used: {error}") from error


def features(sounds: Sequence[np.ndarray], extractor: Any) -> dict[str, np.ndarray]:
    """What a model takes of sounds ``[samples]``, float32 from -1 to 1; without an extractor the sounds themselves.

    Sounds are filled up to the longest of them, or to the window that a model takes, and none is cut: of one that is
    longer than the window the features are longer, too, with a mask that says where they end.
    """
    if extractor is None:
        filled = np.zeros((len(sounds), max(map(len, sounds))), np.float32)
        for row, sound in enumerate(sounds):
            filled[row, : len(sound)] = sound
        return {"input_values": filled}
    padding = inspect.signature(extractor.__call__).parameters.get("padding")
    has_window = padding is None or padding.default == "max_length"
    how: dict[str, Any] = {} if has_window else {"padding": True}
    if has_window and max(map(len, sounds)) > getattr(extractor, "n_samples", np.inf):
        how = {"padding": "longest", "truncation": False, "return_attention_mask": True}
    rate = int(extractor.sampling_rate)
    return {name: np.asarray(array) for name, array in
            extractor(list(sounds), sampling_rate=rate, return_tensors="np", **how).items()}  # fmt: skip


def resampled(sound: np.ndarray, found: int, wanted: int) -> np.ndarray:
    """A sound of ``found`` samples a second as one of ``wanted``; what lies above half of that is filtered out."""
    if found == wanted:
        return sound
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise ColdpressError(
            f"to make {wanted} samples a second of {found} takes scipy, which is not installed",
            hint="pip install 'coldpress[data]'",
        ) from error
    common = int(np.gcd(found, wanted))
    return np.asarray(resample_poly(sound, wanted // common, found // common), np.float32)


def voice(seconds: float, rate: int, random: np.random.Generator) -> np.ndarray:
    """A voice that says vowels: harmonics of a pitch that wanders, as loud as the formants make them; float32."""
    times = np.arange(int(seconds * rate)) / rate
    pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(0.5, 2) * times))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    said = random.integers(0, len(_VOWELS), 1 + int(4 * seconds))[(4 * times).astype(int)]
    formants = np.asarray(_VOWELS, np.float64)[said]
    sound = np.zeros_like(times)
    for harmonic in range(1, int(min(4000, rate / 2) / pitch.max())):
        heights = 1 / (1 + ((harmonic * pitch[:, None] - formants) / _WIDTH_HZ) ** 2)
        sound += heights.sum(axis=1) * np.sin(harmonic * phase)
    sound *= np.abs(np.sin(4 * np.pi * times)) ** 0.5
    sound += 0.01 * random.standard_normal(len(times))
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)
