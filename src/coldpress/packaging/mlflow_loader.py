"""What MLflow calls: a model that answers a table, a row each, or arrays by the names of its inputs.

This file, serve.py and prompts.py beside it know nothing of coldpress.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve import Answer, load  # the file beside this one


class Pressed:
    """``predict`` as MLflow has it."""

    def __init__(self, answer: Answer, takes: dict[str, Any]):
        self._answer, self._takes = answer, takes

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """For a table of questions one of their answers; for arrays, the arrays that the model gives."""
        import pandas

        if "prompt" not in self._takes:
            return self._answer(dict(model_input))
        rows = model_input.to_dict("records") if isinstance(model_input, pandas.DataFrame) else list(model_input)
        given = [{key: value for key, value in row.items() if not pandas.isna(value)} for row in rows]
        return pandas.DataFrame([self._answer(row) for row in given])


def _load_pyfunc(path: str) -> Pressed:
    return Pressed(*load(Path(path)))
