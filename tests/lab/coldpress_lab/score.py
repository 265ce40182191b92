"""How good a model is: best at x = 0.3, y = 4; the fancy mode helps, fewer bits hurt.

More batches measure more exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from coldpress import Context, Metric, Model, Value
from coldpress_lab import log, settings


@dataclass(frozen=True)
class Score(Metric):
    """How good a model is, and how long it takes."""

    batches: int = field(default=100, metadata={"help": "how many batches are looked at"})

    values: ClassVar[Mapping[str, Value]] = {
        "accuracy": Value("higher"),
        "time_ms": Value("lower", "ms"),
        "batches": Value("neither"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    runs_model: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {"batches": 1}

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        found = settings(model.path)
        log(f"score {self.batches} {found}")
        lost = (found.get("x", 0.5) - 0.3) ** 2 + 0.01 * (found.get("y", 1) - 4) ** 2
        lost += {8: 0.0, 4: 0.05, 2: 0.6}[found.get("bits", 8)] - (0.02 if found.get("mode") == "fancy" else 0.0)
        return {"accuracy": 0.9 - lost + 0.1 / self.batches, "time_ms": 10.0 + found.get("y", 1), "batches": 1}
