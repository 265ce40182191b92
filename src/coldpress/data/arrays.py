"""Arrays in a .npz or .npy file, samples along the first axis; read a few samples at a time.

The arrays of a .npz file have the names of the model's inputs; a single one may have any name. With ``as_images`` the
samples are images ``[N, H, W, C]`` or ``[N, H, W]``, values from 0 to 255, and are prepared as image files would be.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from coldpress.data.batches.loader import Labels, Reading, folder_of
from coldpress.data.batches.pictures import PictureLoader
from coldpress.errors import ColdpressError, NotAtHand, did_you_mean
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, option


@dataclass(frozen=True)
class Arrays(PictureLoader):
    """Inputs as they are in the file, or ``pixel_values``; labels ``[samples]``, or of any shape for whole numbers."""

    file: str | None = option("the .npz or .npy file", None)
    labels: str | None = option("name of the array with the labels in the .npz file, or a .npy file of its own", None)
    label_names: tuple[str, ...] = option("names of the classes in the order of the model's outputs", ())
    as_images: bool = option("whether the samples are images that are yet to be prepared for the model", False)

    reads: ClassVar[tuple[str, ...]] = ("file", "labels")
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.as_images and (self._settings() or self.channels_last is not None):
            raise ColdpressError(
                "size, crop, scale, mean, std and channels_last have no effect on plain arrays",
                hint="set as_images: true",
            )

    def check(self, model: Model | Planned) -> None:
        file = self._file()
        if file.suffix == ".npz":
            self._split(_names(file))

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        with tempfile.TemporaryDirectory(prefix="coldpress-arrays-", ignore_cleanup_errors=True) as folder:
            yield from super().batches(model, replace(ctx, scratch=Path(folder)))

    def open(self, model: Model, ctx: Context) -> Reading:
        inputs, labels = self._arrays(ctx.scratch)
        count = _count({**inputs, **({"labels": labels} if labels is not None else {})}, str(self.file))
        names = Labels.of(self.label_names, folder_of(model))
        processing = self.processing(model) if self.as_images else None
        if processing and len(inputs) != 1:
            raise ColdpressError(f"as_images: {self.file} should hold one array of images; found: {', '.join(inputs)}")

        def collate(group: list[int]) -> Batch:
            taken = {name: np.stack([array[index] for index in group]) for name, array in inputs.items()}
            if processing:
                images = next(iter(taken.values()))
                shaped = images if images.ndim == 4 else images[..., None]
                taken = processing(list(shaped), str(self.file))
            found = None if labels is None else self._labels(labels, group, names)
            return Batch(taken, found, origin=Path(str(self.file)).name)

        return Reading(range(count), collate)

    def _labels(self, labels: np.ndarray, group: list[int], names: Labels) -> np.ndarray:
        if labels.ndim > 1:
            return np.stack([labels[index] for index in group]).astype(np.int64)
        return np.array(
            [names.index(labels[index], f"{self.file}, sample {index + 1}") for index in group], dtype=np.int64
        )

    def _arrays(self, scratch: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The inputs and the labels, mapped, not read."""
        file = self._file()
        if file.suffix == ".npy":
            return {file.stem: _mapped(file)}, self._label_file()
        inputs, label = self._split(_names(file))
        unpacked = {name: _unpacked(file, name, scratch) for name in [*inputs, *([label] if label else [])]}
        return {name: unpacked[name] for name in inputs}, unpacked[label] if label else self._label_file()

    def _split(self, names: list[str]) -> tuple[list[str], str | None]:
        """The names of the inputs, and of the labels if these are in the same file."""
        if self.labels is None or self.labels.endswith(".npy"):
            return names, None
        if self.labels not in names:
            found = ", ".join(names)
            hint = did_you_mean(self.labels, names)
            raise ColdpressError(f"{self.file} has no array '{self.labels}'; found: {found}", hint=hint)
        return [name for name in names if name != self.labels], self.labels

    def _label_file(self) -> np.ndarray | None:
        if self.labels is None:
            return None
        file = Path(self.labels).expanduser()
        if not file.is_file():
            raise NotAtHand(
                f"there is no file '{self.labels}' with labels", hint="a .npy file has no names; give a file"
            )
        return _mapped(file)

    def _file(self) -> Path:
        if self.file is None:
            raise ColdpressError("data of arrays needs a file")
        file = Path(self.file).expanduser()
        if not file.is_file():
            raise NotAtHand(f"there is no file '{self.file}'", hint=f"the working directory is {Path.cwd()}")
        if file.suffix not in (".npz", ".npy"):
            raise ColdpressError(f"{file} is neither .npz nor .npy", hint="save it with numpy.save or numpy.savez")
        return file


def _names(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as packed:
            return [name.removesuffix(".npy") for name in packed.namelist()]
    except zipfile.BadZipFile as error:
        raise ColdpressError(f"{file} is no .npz file: {error}") from error


def _unpacked(file: Path, name: str, scratch: Path) -> np.ndarray:
    """An array of a .npz file in a file of its own, as only that can be mapped."""
    place = scratch / f"{file.stem}-{name.replace('/', '_')}.npy"
    with zipfile.ZipFile(file) as packed, packed.open(f"{name}.npy") as stream, place.open("wb") as copy:
        shutil.copyfileobj(stream, copy)
    return _mapped(place)


def _mapped(file: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ColdpressError(f"{file}: {error}", hint="arrays of Python objects are not read") from error
    return found


def _count(arrays: dict[str, np.ndarray], where: str) -> int:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ColdpressError(
            f"{where}: every array needs as many samples, and at least one; found {counts}",
            hint="samples lie along the first axis",
        )
    return next(iter(counts.values()))
