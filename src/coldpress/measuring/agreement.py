"""How far the answers of two models are apart: scores, such as those of classes, and vectors; what tasks share.

An answer is a row of numbers; a batch gives many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.data.batches.examples import Asked, examples
from coldpress.errors import ColdpressError
from coldpress.parts.task import PRECISIONS, Criterion, Task

#: classes whose shares of a distribution differ by less are a tie: which of them comes first, noise decides
_TIE = 0.05
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
            "both models score the same class highest, or classes that the source hardly tells apart",
            "higher",
            "share of answers with the source's label",
            by_precision(0.99, 0.98, 0.97, 0.95, 0.8),
            why="of some hundred answers one may fall otherwise by chance; that ALBERT turns none in int8, ties left"
            " out, and 8 % in int4",
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


def of_scores(expected: Rows, found: Rows) -> dict[str, float]:
    """``kl``: KL(source || model) of the distributions that rows of scores stand for, in nats, on average.

    ``label_agreement``: the share of rows whose highest score is the same one, or one that the source itself hardly
    tells from its own: its share of the distribution is less than five points smaller. ``distance``: the norm of the
    difference of the scores in units of their norm, the mean of each row left out, as it changes no distribution; rows
    of one number are taken as they are.
    """
    _require_alike(expected, found)
    kl, same, off, size = [], [], 0.0, 0.0
    for one, two in zip(expected, found, strict=True):
        source, model = one.astype(np.float64), two.astype(np.float64)
        logs = _log_softmax(source)
        shares = np.exp(logs)
        kl.append(float((shares * (logs - _log_softmax(model))).sum()))
        same.append(bool(np.isfinite(model).all() and shares.max() - shares[model.argmax()] < _TIE))
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
