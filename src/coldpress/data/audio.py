"""Sound files with what is said in them, or with a class for each.

A table (CSV, JSON lines, ...) has a row for each file; features are made by the model's own feature extractor. WAV
files are read with Python alone, other formats with the library soundfile. A sound of another rate than the model takes
is resampled.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from coldpress.data.batches import sounds
from coldpress.data.batches.loader import Labels, PlacedRow, Reading, RowLoader, folder_of
from coldpress.errors import ColdpressError, NotAtHand
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, option


@dataclass(frozen=True)
class Audio(RowLoader):
    """Inputs as the feature extractor gives them, filled up to the longest of a batch; labels are texts, or
    ``[samples]``."""

    folder: str | None = option("folder that the files' paths in the table begin at", None)
    audio_col: str = option("column with the path of the sound file", "audio")
    text_col: str | None = option("column with what is said in it", None)
    label_col: str | None = option("column with its class, by name or number", None)
    label_names: tuple[str, ...] = option("names of the classes in the order of the model's outputs", ())
    sampling_rate: int = option(
        "samples a second, for a model without a feature extractor, which gets the plain samples", 16000
    )

    reads: ClassVar[tuple[str, ...]] = ("data_files", "folder")
    needs: ClassVar[tuple[str, ...]] = ("transformers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_col is not None and self.label_col is not None:
            raise ColdpressError("text_col and label_col: a sound file has a text or a class, not both")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.audio_col, self.text_col, self.label_col) if name is not None)

    def check(self, model: Model | Planned) -> None:
        if self.folder is None:
            raise ColdpressError("audio needs the folder with the sound files", hint="name it in folder")
        if not Path(self.folder).expanduser().is_dir():
            raise NotAtHand(f"audio needs the folder with the sound files; found: {self.folder}")
        super().check(model)

    def open(self, model: Model, ctx: Context) -> Reading:
        extractor = sounds.extractor_of(folder_of(model))
        rate = self.sampling_rate if extractor is None else int(extractor.sampling_rate)
        labels = Labels.of(self.label_names, folder_of(model))

        def collate(group: list[PlacedRow]) -> Batch:
            heard = [self._sound(row, rate) for row in group]
            return Batch(sounds.features(heard, extractor), self._labels(group, labels))

        return Reading(self.rows(), collate)

    def _sound(self, row: PlacedRow, rate: int) -> np.ndarray:
        file = Path(str(self.folder)).expanduser() / str(row[self.audio_col])
        if not file.is_file():
            raise ColdpressError(f"{row.where}: there is no sound file {file}")
        samples, found = _read_wave(file) if file.suffix.lower() == ".wav" else _read_sound(file)
        if not len(samples):
            raise ColdpressError(f"{row.where}: there is no sound in {file}")
        return sounds.resampled(samples, found, rate)

    def _labels(self, group: list[PlacedRow], labels: Labels) -> np.ndarray | list[str] | None:
        if self.text_col is not None:
            return [str(row[self.text_col]) for row in group]
        if self.label_col is None:
            return None
        return np.array([labels.index(row[self.label_col], row.where) for row in group], dtype=np.int64)


def _read_wave(file: Path) -> tuple[np.ndarray, int]:
    """Samples, float32 from -1 to 1, of all channels' mean, and how many there are a second; PCM only."""
    try:
        with wave.open(str(file), "rb") as sound:
            width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
            frames = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError):  # not PCM, or no WAV file at all
        return _read_sound(file)
    if width == 1:
        whole = np.frombuffer(frames, np.uint8).astype(np.int32) - 128
    elif width == 3:
        low, middle, high = np.frombuffer(frames, np.uint8).reshape(-1, 3).astype(np.int32).T
        whole = (low | middle << 8 | high << 16) << 8 >> 8
    else:
        whole = np.frombuffer(frames, "<i2" if width == 2 else "<i4").astype(np.int64)
    scaled = whole.astype(np.float32) / float(1 << (8 * width - 1))
    return scaled.reshape(-1, channels).mean(axis=1), rate


def _read_sound(file: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ColdpressError(
            f"{file} is no plain WAV file; reading it needs soundfile", hint="pip install soundfile"
        ) from error
    try:
        samples, rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise ColdpressError(f"{file} cannot be read as sound: {error}") from error
    return samples.mean(axis=1), int(rate)
