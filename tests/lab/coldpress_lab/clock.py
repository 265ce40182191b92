"""A time that wanders: each measurement of a model takes the next of some given times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from coldpress import Context, Metric, Model, Value
from coldpress_lab import log, settings


@dataclass(frozen=True)
class Clock(Metric):
    """The time of a model with 8, 4 or 2 bits; ``folder`` keeps how often each was measured."""

    folder: str = field(default=".", metadata={"help": "where it is noted how often a model was measured"})
    times: dict[str, list[float]] = field(default_factory=dict, metadata={"help": "bits -> times, in turn"})

    values: ClassVar[Mapping[str, Value]] = {"ms": Value("lower", "ms")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    runs_model: ClassVar[bool] = False
    is_timed: ClassVar[bool] = True

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        bits = str(settings(model.path).get("bits", 16))
        log(f"clock {bits}")
        seen = Path(self.folder) / f"seen-{bits}"
        count = int(seen.read_text()) if seen.exists() else 0
        seen.write_text(str(count + 1))
        times = self.times.get(bits, [20.0])
        return {"ms": times[count % len(times)]}
