"""The vectors of texts, by an ONNX model that gives one for each: an encoder with its pooling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.pooling import EMBEDDING
from coldpress.graphs.session import Session
from coldpress.target import Target

_BATCH = 32
_USUAL_LENGTH = 512


class Encoder:
    """A folder whose graph has the output ``sentence_embedding``. ``length``: tokens of a text, at most;
    ``vocabulary``: how many there are.

    Raises ColdpressError for a folder without that output or without a tokenizer.
    """

    def __init__(self, folder: Path, threads: int = 0):
        from tokenizers import Tokenizer

        self.folder = folder
        self._session = Session(folder, Target(threads=threads))
        if EMBEDDING not in self._session.outputs:
            raise ColdpressError(
                f"'{folder}' gives no vectors of texts: its outputs are {', '.join(self._session.outputs)}",
                hint=f"press a sentence-transformers folder, whose pooling becomes the output {EMBEDDING}",
            )
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ColdpressError(f"'{folder}' has no tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length, self.vocabulary = _longest(folder), self._tokenizer.get_vocab_size()
        self._turn = Lock()

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, with those that the model begins and ends every text with."""
        found: list[int] = self._tokenizer.encode(text).ids
        return found

    def embed(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """The vectors ``[texts, size]`` of tokens, float32; texts of like length share a batch."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        places, found = iter(order), list[np.ndarray]()
        with self._turn:
            while batch := list(islice(places, _BATCH)):
                found.append(self._batch([rows[place] for place in batch]))
        return np.concatenate(found)[np.argsort(order)]

    def _batch(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(map(len, rows))
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
        ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int64)
        vectors: np.ndarray = self._session.run({"input_ids": ids, "attention_mask": mask})[EMBEDDING]
        return vectors.astype(np.float32)


def _longest(folder: Path) -> int:
    """What the tokenizer and the positions of the model allow."""
    known = []
    for name, key in (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings")):
        file = folder / name
        if file.is_file() and isinstance(found := json.loads(file.read_text(encoding="utf-8")).get(key), int | float):
            known.append(int(found))
    return min(known, default=_USUAL_LENGTH)
