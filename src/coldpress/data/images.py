"""Image files in a folder: one sub-folder for each class, named as the class, or all of them in one folder without
classes.

The classes are numbered as ``label_names`` or the model's config.json say, else in the order of their names. Images of
the classes come in turn, so that the first hundred are of all classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np

from coldpress.data.batches.loader import Labels, Reading, folder_of
from coldpress.data.batches.pictures import PictureLoader
from coldpress.errors import ColdpressError, NotAtHand
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, option

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True)
class Images(PictureLoader):
    """Input ``pixel_values``, whatever the model calls it; labels ``[samples]``."""

    folder: str | None = option("folder with the images", None)
    label_names: tuple[str, ...] = option("names of the classes in the order of the model's outputs", ())

    reads: ClassVar[tuple[str, ...]] = ("folder",)

    def check(self, model: Model | Planned) -> None:
        self._files()

    def open(self, model: Model, ctx: Context) -> Reading:
        files = self._files()
        classes = sorted({label for _, label in files if label is not None})
        named = Labels.of(self.label_names, folder_of(model))
        numbers = {
            one: (named if named.names else Labels(tuple(classes))).index(one, str(self.folder)) for one in classes
        }
        processing = self.processing(model)

        def collate(group: list[tuple[Path, str | None]]) -> Batch:
            pixels = processing([processing.open(file) for file, _ in group], str(group[0][0]))
            labels = [numbers[label] for _, label in group if label is not None]
            return Batch(pixels, np.array(labels, dtype=np.int64) if labels else None)

        return Reading(files, collate)

    def _files(self) -> list[tuple[Path, str | None]]:
        """The images with their classes, classes in turn."""
        if self.folder is None:
            raise ColdpressError("data of images needs a folder")
        folder = Path(self.folder).expanduser()
        if not folder.is_dir():
            raise NotAtHand(f"there is no folder {folder}", hint=f"the working directory is {Path.cwd()}")
        loose = list(_images_in(folder))
        classes = {one.name: list(_images_in(one)) for one in sorted(folder.iterdir()) if one.is_dir()}
        held = {name: files for name, files in classes.items() if files}
        if loose and held:
            raise ColdpressError(
                f"{folder} holds images both beside and in sub-folders",
                hint="put every image into the sub-folder of its class, or all into one folder",
            )
        if not loose and not held:
            raise ColdpressError(f"there are no images in {folder}", hint=f"known: {', '.join(_SUFFIXES)}")
        turns = zip_longest(*([(file, name) for file in files] for name, files in held.items()))
        return [(file, None) for file in loose] or [one for turn in turns for one in turn if one is not None]


def _images_in(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix.lower() in _SUFFIXES and file.is_file())
