"""Batches from a function of the user's own.

The function gets the path of the model and ``arguments``. It gives batches, one after the other, best as a generator:
each is a mapping of input names to arrays ``[samples, ...]``, or a pair of that and the labels of the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, Data, option
from coldpress.parts.user_script import UserFunction, require_function


@dataclass(frozen=True)
class Script(Data):
    """Whatever the function gives, unchanged."""

    script: str | None = option("Python file with the function; it is run", None)
    function: str | None = option("name of the function in it", None)
    arguments: dict[str, Any] = option("what it is called with besides the model's path", dict)
    max_batches: int | None = option("at most so many batches", None)

    reads: ClassVar[tuple[str, ...]] = ("script",)
    runs_script: ClassVar[bool] = True

    def check(self, model: Model | Planned) -> None:
        require_function(self.script, self.function)

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        function = UserFunction(self.script, self.function)
        given = function(model.path, **self.arguments)
        for number, value in enumerate(islice(function.each(given), self.max_batches), start=1):
            yield batch_of(value, f"{self.script}: batch {number} of {self.function}()")


def batch_of(value: Any, where: str) -> Batch:
    """What a script gives as a batch; ``where`` it came from. ColdpressError for anything else."""
    inputs, labels = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not isinstance(inputs, Mapping):
        raise ColdpressError(
            f"{where} is {type(inputs).__name__}, not a mapping of input names to arrays",
            hint="give {name: array} or ({name: array}, labels)",
        )
    arrays = {str(name): np.asarray(array) for name, array in inputs.items()}
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ColdpressError(f"{where}: every array needs as many samples, and at least one; found {counts}")
    return Batch(arrays, _labels(labels, len(next(iter(arrays.values()))), where))


def _labels(labels: Any, count: int, where: str) -> np.ndarray | list[str] | None:
    if labels is None:
        return None
    found = list(labels)
    if len(found) != count:
        raise ColdpressError(f"{where}: {count} samples, but {len(found)} labels")
    if all(isinstance(label, str) for label in found):
        return found
    return np.asarray(labels)
