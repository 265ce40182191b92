"""How large a model is; nothing has to be run for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from coldpress import Context, Metric, Model, Value
from coldpress_lab import log, settings


@dataclass(frozen=True)
class Weight(Metric):
    """How large a model is."""

    values: ClassVar[Mapping[str, Value]] = {"mass": Value("lower", "kg")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    runs_model: ClassVar[bool] = False

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        found = settings(model.path)
        log(f"weight {found}")
        return {"mass": float(found.get("bits", 16) * 10)}
