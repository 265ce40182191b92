"""Images as a model takes them: resized, cropped, scaled and normalised by transformers' own image processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from coldpress.data.batches.loader import Loader, folder_of
from coldpress.errors import ColdpressError
from coldpress.graphs.signature import signature
from coldpress.models.model import Model
from coldpress.models.onnx_folder import graph_file
from coldpress.parts import option

_SETTINGS = "preprocessor_config.json"
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class PictureLoader(Loader):
    """Data of images. What is not said here is as the model's preprocessor_config.json says."""

    size: int | tuple[int, int] | None = option("resize: pixels of the shorter edge, or [height, width]", None)
    crop: int | tuple[int, int] | None = option("cut out the middle: pixels, or [height, width]", None)
    scale: float | None = option("factor for the pixels' values; 1/255 where nothing else is said", None)
    mean: tuple[float, ...] = option("taken off each channel, after scaling", ())
    std: tuple[float, ...] = option("each channel is divided by it", ())
    channels_last: bool | None = option("whether the model takes [N, H, W, C]; left out: as its shape says", None)

    needs: ClassVar[tuple[str, ...]] = ("pillow", "transformers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.mean) != bool(self.std):
            raise ColdpressError("mean and std go together: one of them is missing")

    def processing(self, model: Model) -> Processing:
        """How images become what ``model`` takes."""
        shape = _shape_of(model)
        is_last = self.channels_last
        if is_last is None:
            is_last = len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS
        channels = shape[3 if is_last else 1] if len(shape) == 4 else None
        return Processing(self._processor(folder_of(model)), 1 if channels == 1 else 3, is_last)

    def _processor(self, folder: Path) -> Callable[..., Any]:
        import transformers

        settings = self._settings()
        is_of_pictures = _is_of_pictures(folder)
        if is_of_pictures and not (folder / _SETTINGS).is_file() and not (self.mean and settings.get("do_resize")):
            raise ColdpressError(
                f"{folder} has no {_SETTINGS}, which says how the model was trained to see images",
                hint="put it there, or say it yourself: size, mean and std of the data, and scale if it is not 1/255",
            )
        if (folder / _SETTINGS).is_file():
            try:
                found: Any = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil", **settings)
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise ColdpressError(f"{folder / _SETTINGS} cannot be used: {error}") from error
            return found
        # the plainest of transformers' processors, which does what it is told and nothing else
        plain = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        nothing = {"do_resize": False, "do_center_crop": False, "do_normalize": False, "do_convert_rgb": False}
        made: Callable[..., Any] = plain(**{**nothing, **settings})
        return made

    def _settings(self) -> dict[str, Any]:
        """What was asked for, in transformers' words."""
        asked: dict[str, Any] = {}
        if self.size is not None:
            size = {"shortest_edge": self.size} if isinstance(self.size, int) else _edges(self.size)
            asked |= {"do_resize": True, "size": size}
        if self.crop is not None:
            crop = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
            asked |= {"do_center_crop": True, "crop_size": _edges(crop)}
        if self.scale is not None:
            asked |= {"do_rescale": self.scale != 1, "rescale_factor": self.scale}
        if self.mean:
            asked |= {"do_normalize": True, "image_mean": list(self.mean), "image_std": list(self.std)}
        return asked


@dataclass(frozen=True)
class Processing:
    """Makes one array of some images; ``channels`` is what the model takes of each, 1 or 3."""

    processor: Callable[..., Any]
    channels: int
    is_last: bool

    def __call__(self, images: list[np.ndarray], where: str) -> dict[str, np.ndarray]:
        """``images``: ``[H, W, C]`` each, all values from 0 to 255.

        Gives ``pixel_values [N, C, H, W]`` or ``[N, H, W, C]``.
        """
        try:
            found = self.processor(images, return_tensors="np", input_data_format="channels_last")["pixel_values"]
        except (ValueError, TypeError) as error:
            raise ColdpressError(
                f"{where}: these images cannot be made a batch: {error}",
                hint="give size and crop, so that all become equal",
            ) from error
        pixels = np.asarray(found, dtype=np.float32)
        return {"pixel_values": np.moveaxis(pixels, 1, 3) if self.is_last else pixels}

    def open(self, file: Path) -> np.ndarray:
        """An image file as ``[H, W, C]``, uint8, the way up that its camera noted."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(file) as image:
                upright = _in_bytes(ImageOps.exif_transpose(image))
                pixels = np.asarray(upright.convert("L" if self.channels == 1 else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ColdpressError(f"{file} cannot be read as an image: {error}") from error
        return pixels if pixels.ndim == 3 else pixels[..., None]


def _is_of_pictures(folder: Path) -> bool:
    """Whether the folder holds the settings of a network of transformers that sees."""
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(settings.get("architectures")) and ("image_size" in settings or "num_channels" in settings)


def _in_bytes(image: Any) -> Any:
    """An image whose values go to 255. Those of 16 bits and floats, which Pillow would cut off there, are scaled: whole
    numbers from 65535, floats from 1 where none is larger."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    most = values.max(initial=0)
    scale = 255 if image.mode == "F" and most <= 1 else 255 / 65535 if most > 255 or "16" in image.mode else 1
    return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))


def _edges(pair: tuple[int, int]) -> dict[str, int]:
    return {"height": pair[0], "width": pair[1]}


def _shape_of(model: Model) -> tuple[Any, ...]:
    """The shape of the input of an ONNX model that has only one; nothing where that is not known."""
    if model.format != "onnx":
        return ()
    inputs = list(signature(graph_file(model.path)).values())
    return inputs[0].shape if len(inputs) == 1 else ()
