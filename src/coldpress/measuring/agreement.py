"""How far the answers of two models are apart: scores, such as those of classes, and vectors; what tasks share.

An answer is a row of numbers; a batch gives many.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.data.batches.examples import Asked, examples
from coldpress.errors import ColdpressError
from coldpress.measuring.encoder_decoder import is_encoder_decoder
from coldpress.models.model import Model
from coldpress.parts.task import PRECISIONS, Criterion, Task

#: tokens of an answer that are compared
_SAID = 24
Rows = Sequence[np.ndarray]


def by_precision(*limits: float) -> dict[str, float]:
    """Limits for fp32, fp16, bf16, int8 and int4."""
    return dict(zip(PRECISIONS, limits, strict=True))


class ComparedOnExamples(Task):
    """A task whose models are asked examples, as is their source, by the metric ``task_divergence``."""

    metric = "task_divergence"
    metrics = ("latency",)
    is_traced = True
    takes_pairs = False

    @property
    def asked(self) -> dict[str, Any]:
        return {"task": type(self).__module__.rpartition(".")[2]}

    def examples(
        self, folder: Path, takes: Collection[str], files: Sequence[str] = (), trust_remote_code: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        return examples(Asked(folder, takes, files, trust_remote_code), pairs=self.takes_pairs)


class Scored(ComparedOnExamples):
    """Answers are scores of classes, of which the highest counts."""

    criteria = (
        Criterion(
            "kl",
            "KL divergence",
            "mean over answers, in nats; 0 is identical",
            "lower",
            "KL divergence",
            by_precision(1e-5, 1e-3, 5e-3, 0.02, 0.3),
            why="an ALBERT with 0.7 million weights, which its layers share, loses 0.0014 in int8 and 0.18 in int4;"
            " larger models lose less",
        ),
        Criterion(
            "label_agreement",
            "Same label",
            "both models score the same class highest",
            "higher",
            "share of answers with the source's label",
            by_precision(0.99, 0.98, 0.97, 0.95, 0.8),
            why="rounded weights turn none of 395 labels of that ALBERT in int8 and 15 % in int4; activations in int8"
            " turn more of those that it hardly tells apart",
            names=("agreement",),
            is_share=True,
        ),
        Criterion(
            "distance",
            "Change of the scores",
            "norm of the difference in units of the source's norm",
            "lower",
            "distance of the scores from the source's",
            by_precision(1e-3, 0.01, 0.03, 0.1, 0.5),
            why="it judges single numbers, which have no distribution; that ALBERT is at 0.023 in int8 and at 0.31"
            " in int4",
        ),
    )

    def compare(self, expected: Rows, found: Rows) -> dict[str, float]:
        return of_scores(expected, found)


class Spoken(Scored):
    """Answers are texts that a decoder writes: scores of each token behind those that the source wrote before it.

    Greedy search says the same as long as the label is the same.
    """

    def measured(self, model: Model) -> tuple[str, ...]:
        """Nothing yet of a pair of graphs: how long an answer takes depends on its length."""
        return () if is_encoder_decoder(model.path) else self.metrics

    def completed(
        self, folder: Path, inputs: Mapping[str, np.ndarray], speak: Callable[..., list[int]]
    ) -> dict[str, np.ndarray]:
        """With what the source says for each sample, ``decoder_input_ids``, and where that is no padding."""
        samples = range(len(next(iter(inputs.values()))))
        begin = _beginning(folder)
        said = [speak({name: array[[one]] for name, array in inputs.items()}, _SAID) for one in samples]
        said = [tokens if tokens[:1] == begin[:1] else [*begin, *tokens] for tokens in said]
        ids = np.zeros((len(said), max(map(len, said))), np.int64)
        shown = np.zeros_like(ids)
        for row, tokens in enumerate(said):
            ids[row, : len(tokens)], shown[row, : len(tokens)] = tokens, 1
        return {**inputs, "decoder_input_ids": ids, "decoder_attention_mask": shown}

    def answers(
        self, folder: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """A row of scores for each token that the source says."""
        return list(outputs["logits"][inputs["decoder_attention_mask"] == 1])


def _beginning(folder: Path) -> list[int]:
    """The tokens before an answer, which Whisper's ``generate`` leaves out: that it begins, and has no times in it."""
    found: list[int] = []
    for file in ("config.json", "generation_config.json"):
        if (folder / file).is_file():
            said = json.loads((folder / file).read_text(encoding="utf-8"))
            found += [said[name] for name in _BEGINNINGS[file] if said.get(name) is not None]
    return found


_BEGINNINGS = {"config.json": ("decoder_start_token_id",), "generation_config.json": ("no_timestamps_token_id",)}


def of_scores(expected: Rows, found: Rows) -> dict[str, float]:
    """``kl``: KL(source || model) of the distributions that rows of scores stand for, in nats, on average.

    ``label_agreement``: the share of rows whose highest score is the same one. ``distance``: the norm of the
    difference of the scores in units of their norm, the mean of each row left out, as it changes no distribution; rows
    of one number are taken as they are.
    """
    _require_alike(expected, found)
    kl, same, off, size = [], [], 0.0, 0.0
    for one, two in zip(expected, found, strict=True):
        source, model = one.astype(np.float64), two.astype(np.float64)
        logs = _log_softmax(source)
        kl.append(float((np.exp(logs) * (logs - _log_softmax(model))).sum()))
        same.append(bool(np.isfinite(model).all() and source.argmax() == model.argmax()))
        if len(source) > 1:
            source, model = source - source.mean(), model - model.mean()
        off, size = off + float(((model - source) ** 2).sum()), size + float((source**2).sum())
    return {
        "kl": max(0.0, float(np.mean(kl))),
        "label_agreement": float(np.mean(same)),
        "distance": _ratio(off, size),
        "compared": len(kl),
    }


def of_vectors(expected: Rows, found: Rows) -> dict[str, float]:
    """``cosine``: of the vectors of both models, on average, and ``least_cosine``. ``distance``: as of scores."""
    _require_alike(expected, found)
    source, model = (np.stack([np.asarray(row, np.float64) for row in rows]) for rows in (expected, found))
    lengths = np.linalg.norm(source, axis=1) * np.linalg.norm(model, axis=1)
    cosines = (source * model).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return {
        "cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "distance": _ratio(float(((model - source) ** 2).sum()), float((source**2).sum())),
        "compared": len(cosines),
    }


def of_boxes(expected: Rows, found: Rows, count: int) -> dict[str, float]:
    """Of each picture the ``count`` objects that the source is surest of, held against the boxes of the model.

    A row is ``[boxes, 4 + classes]``: middle, width and height, and scores of classes, the last of which may stand for
    none. The order of boxes means nothing: each object is held against the box that overlaps it most of those with its
    class. ``box_overlap``: intersection over union, on average, 0 where there is none; ``object_agreement``: the share
    of objects whose box overlaps by more than half.
    """
    _require_alike(expected, found)
    overlaps: list[float] = []
    for source, model in zip(expected, found, strict=True):
        labels = source[:, 4:].argmax(axis=1)
        surest = np.argsort(-source[:, 4:].max(axis=1), kind="stable")[:count]
        same = labels[surest][:, None] == model[:, 4:].argmax(axis=1)[None]
        overlaps += (_overlaps(source[surest, :4], model[:, :4]) * same).max(axis=1).tolist()
    return {
        "box_overlap": float(np.mean(overlaps)),
        "object_agreement": float(np.mean(np.array(overlaps) > 0.5)),
        "compared": len(overlaps),
    }


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``[n, 4]`` and ``[m, 4]``, each the middle, width and height; ``[n, m]``."""
    (low, high), (lower, higher) = ((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2) for b in (one, other))
    common = np.clip(np.minimum(high[:, None], higher[None]) - np.maximum(low[:, None], lower[None]), 0, None).prod(-1)
    union = (high - low).prod(-1)[:, None] + (higher - lower).prod(-1)[None] - common
    return np.asarray(common / np.maximum(union, np.finfo(np.float32).tiny))


def of_maps(expected: Rows, found: Rows) -> dict[str, float]:
    """Of maps of scores ``[classes, height, width]``: ``overlap``, intersection over union of the places of a class in
    both, over all maps, the mean of the classes that the source gives; ``label_agreement``: the share of places."""
    _require_alike(expected, found)
    source, model = (np.concatenate([one.argmax(axis=0).reshape(-1) for one in maps]) for maps in (expected, found))
    classes = np.unique(source)
    overlaps = [((source == one) & (model == one)).sum() / ((source == one) | (model == one)).sum() for one in classes]
    finite = all(np.isfinite(one).all() for one in found)
    return {
        "overlap": float(np.mean(overlaps)) if finite else 0.0,
        "label_agreement": float(np.mean(source == model)) if finite else 0.0,
        "compared": len(source),
    }


def ranking(expected: Rows, found: Rows) -> float:
    """Spearman's correlation of the cosines of all pairs of vectors, in one model and in the other: one that keeps it
    high finds the same neighbours."""
    pairs = np.triu_indices(len(expected), 1)
    both = [_similarities(rows)[pairs] for rows in (expected, found)]
    ranks = [np.argsort(np.argsort(one)).astype(np.float64) for one in both]
    return float(np.asarray(np.corrcoef(np.stack(ranks)))[0, 1])


def _similarities(rows: Rows) -> np.ndarray:
    vectors = np.stack([np.asarray(row, np.float64) for row in rows])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors @ vectors.T)


def _log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _ratio(off: float, size: float) -> float:
    return float(np.sqrt(off / size)) if size else float(off > 0)


def _require_alike(expected: Rows, found: Rows) -> None:
    shapes = [[row.shape for row in rows] for rows in (expected, found)]
    if shapes[0] != shapes[1]:
        different = next((pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]), None)
        what = f"an answer {list(different[1])} where its source gives {list(different[0])}" if different else (
            f"{len(found)} answers where its source gives {len(expected)}")  # fmt: skip
        raise ColdpressError(f"the model gives {what}")
    if not expected:
        raise ColdpressError("the models were asked nothing, so nothing can be compared")
