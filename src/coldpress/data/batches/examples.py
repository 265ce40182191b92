"""What a Hugging Face model is asked where there is no data: sentences of the held-out texts, pictures of colours, and
voices.

Batches differ in all sizes that a model leaves open: the first has two samples, the second three, texts grow longer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.data.batches.sounds import extractor_of, features, voice
from coldpress.data.texts import heldout
from coldpress.data.texts.tokenization import longest_input, pretrained_tokenizer
from coldpress.errors import ColdpressError
from coldpress.models.tokenizers.tokenizer import has_tokenizer

Batch = dict[str, np.ndarray]
_BATCHES = 24
#: samples of the first batches; all others have the last number
_SAMPLES = (2, 3, 4)
#: sentences of a text of a batch, which takes turns
_SENTENCES = (1, 2, 3, 5)
#: different sentences that have to be there: the likeness of a few texts to each other says nothing
_LEAST_SENTENCES = 16
_LONGEST = 256
_PIXELS, _CHANNELS = 224, 3
#: batches of sounds, and samples a second of those that nobody says the rate of
_SOUNDS, _RATE = 8, 16000


@dataclass(frozen=True)
class Asked:
    """Whom the examples are for: a model in ``folder`` whose network takes inputs of the names ``takes``.

    ``files``: texts to take instead of the shipped ones.
    """

    folder: Path
    takes: Collection[str]
    files: Sequence[str] = ()
    trust_remote_code: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What config.json says, of a pair of networks what it says of each."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return {**(found.get("text_config") or {}), **(found.get("vision_config") or {}), **found}


def examples(asked: Asked, *, pairs: bool = False) -> Iterator[Batch]:
    """Batches in what the network takes: token ids, pixels, or both, or sounds. ``pairs``: every other text has another
    beside it.

    ColdpressError for a network that takes something else.
    """
    if "input_ids" in asked.takes:
        texts = _texts(asked, pairs) if has_tokenizer(asked.folder) else _ids(asked)
        return _beside(texts, _pictures(asked)) if "pixel_values" in asked.takes else texts
    if "pixel_values" in asked.takes:
        return _pictures(asked)
    if {"input_values", "input_features"} & set(asked.takes):
        return _sounds(asked)
    raise ColdpressError(
        f"{asked.folder} takes {', '.join(asked.takes)}: there are no examples for such inputs",
        hint="press it without verification (--no_verify)",
    )


def sentences(files: Sequence[str] = ()) -> list[str]:
    """The sentences of the held-out texts, or of a user's files; ColdpressError for too few of them."""
    found = [
        one.strip()
        for text in heldout.texts(files)
        for paragraph in text.split("\n")
        for one in re.split(r"(?<=[.!?])\s+", paragraph)
    ]
    known = [one for one in found if len(one) > 1]
    if len(set(known)) < _LEAST_SENTENCES:
        raise ColdpressError(
            f"{', '.join(files)}: {len(set(known))} different sentences to compare on, and it takes {_LEAST_SENTENCES}",
            hint="give more text, or leave it out (--eval_data) for the shipped one",
        )
    return known


def _texts(asked: Asked, pairs: bool) -> Iterator[Batch]:
    tokenizer = pretrained_tokenizer(asked.folder, asked.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    limits = [asked.settings.get("max_position_embeddings"), longest_input(tokenizer, None), _LONGEST]
    most = min(int(one) for one in limits if one)
    given = iter(cycle(sentences(asked.files)))
    for number in range(_BATCHES):
        count = _SAMPLES[min(number, len(_SAMPLES) - 1)]
        texts = [" ".join(islice(given, _SENTENCES[(number + place) % len(_SENTENCES)])) for place in range(count)]
        others = [next(given) for _ in texts] if pairs and number % 2 else None
        encoded = tokenizer(texts, others, padding=True, truncation=True, max_length=most, return_tensors="np")
        yield {name: np.asarray(array, np.int64) for name, array in encoded.items() if name in asked.takes}


def _ids(asked: Asked) -> Iterator[Batch]:
    """Token ids of no text, for a folder without a tokenizer; the second half of the first sample is padding."""
    random, vocabulary = np.random.default_rng(0), int(asked.settings.get("vocab_size") or 2)
    most = int(asked.settings.get("max_position_embeddings") or _LONGEST) - 2
    for number in range(_BATCHES):
        shape = (_SAMPLES[min(number, len(_SAMPLES) - 1)], min(most, 8 + 5 * (number % 8)))
        ids = random.integers(0, vocabulary, shape)
        mask = np.ones(shape, np.int64)
        mask[0, shape[1] // 2 :] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        yield {name: array for name, array in given.items() if name in asked.takes}


def _beside(texts: Iterator[Batch], pictures: Iterator[Batch]) -> Iterator[Batch]:
    """Texts and pictures to be compared with each other; there are more pictures, so that no size stands for both."""
    for text, picture in zip(texts, pictures, strict=False):
        pixels = picture["pixel_values"]
        yield {**text, "pixel_values": np.concatenate([pixels, pixels[:, :, ::-1]])}


def _sounds(asked: Asked) -> Iterator[Batch]:
    """Voices of some seconds as the model's feature extractor has them; without one, of the sizes that its settings
    name."""
    random, settings, extractor = np.random.default_rng(0), asked.settings, extractor_of(asked.folder)
    rate = int(extractor.sampling_rate) if extractor is not None else _RATE
    bins = settings.get("num_mel_bins")
    for number in range(_SOUNDS):
        count = _SAMPLES[min(number, len(_SAMPLES) - 1)]
        voices = [voice(0.7 + 0.4 * ((number + place) % 5), rate, random) for place in range(count)]
        if extractor is None and bins:
            length = 2 * int(settings.get("max_source_positions") or 0)
            shape = (count, bins, length) if length else (count, int(settings.get("max_length") or 1024), bins)
            name = "input_features" if "input_features" in asked.takes else "input_values"
            yield {name: random.standard_normal(shape).astype(np.float32)}
        else:
            given = features(voices, extractor)
            yield {name: array for name, array in given.items() if name in asked.takes}


def _pictures(asked: Asked) -> Iterator[Batch]:
    """Fields of soft colours, of the size that the model's settings name; normalised, as an image processor does."""
    random, settings = np.random.default_rng(0), asked.settings
    height, width = _size(asked.folder, settings)
    channels = int(settings.get("num_channels") or _CHANNELS)
    for number in range(_BATCHES):
        count = _SAMPLES[min(number, len(_SAMPLES) - 1)]
        coarse = random.standard_normal((count, channels, 4 + number % 5, 4 + number % 7))
        rows, columns = (np.linspace(0, size - 1e-6, full).astype(int)
                         for size, full in zip(coarse.shape[2:], (height, width), strict=True))  # fmt: skip
        fine = random.standard_normal((count, channels, height, width))
        yield {"pixel_values": (coarse[:, :, rows][..., columns] + 0.2 * fine).astype(np.float32)}


def _size(folder: Path, settings: dict[str, Any]) -> tuple[int, int]:
    """Height and width: those that config.json names, else those of the image processor."""
    file = folder / "preprocessor_config.json"
    processing = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for found in (settings.get("image_size"), processing.get("crop_size"), processing.get("size")):
        if isinstance(found, int):
            return found, found
        if isinstance(found, list | tuple) and len(found) == 2:
            return int(found[0]), int(found[1])
        if isinstance(found, dict) and "height" in found:
            return int(found["height"]), int(found["width"])
        if isinstance(found, dict) and "shortest_edge" in found:
            return int(found["shortest_edge"]), int(found["shortest_edge"])
    return _PIXELS, _PIXELS
