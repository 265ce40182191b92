"""How long a model takes for a batch: an encoder, an image or sound model, or one prompt of a language model.

``latency_p95_ms`` is the time that one run in twenty exceeds; ``throughput_p95`` the samples a second that one run in
twenty falls below. What a chat model needs to answer is the metric ``generation``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session
from coldpress.measuring.inference import open_model
from coldpress.models.model import Model
from coldpress.parts import Context, DataSource, Metric, Value, option

_SHARES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
_NUMBERS = ("avg", "min", "max", *_SHARES)


@dataclass(frozen=True)
class Latency(Metric):
    """Wall-clock time of single runs on one batch, after some that are not counted.

    ``latency_noise_ms`` is half the range of the medians of five stretches of the runs: how far the machine itself
    wandered meanwhile.
    """

    data: DataSource | None = option("where the batch comes from, its first one; left out: synthetic", None)
    warmup: int = option("runs before the timed ones", 10)
    repeats: int = option("timed runs", 50)
    sleep_ms: float = option("pause before each run", 0.0)
    io_binding: bool = option("keep inputs and outputs where the device has them (ONNX only)", False)
    trust_remote_code: bool = option("run model code from a Hugging Face folder", False)

    values: ClassVar[Mapping[str, Value]] = {
        **{f"latency_{name}_ms": Value("lower", "ms") for name in _NUMBERS},
        "latency_noise_ms": Value("neither", "ms"),
        **{f"throughput_{name}": Value("higher", "samples/s") for name in _NUMBERS},
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    quick: ClassVar[Mapping[str, Any]] = {"warmup": 2, "repeats": 8}
    is_timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or self.sleep_ms < 0:
            raise ColdpressError("latency: repeats must be at least 1, warmup and sleep_ms at least 0")

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        source = self.data or DataSource("synthetic")
        batch = next(source.batches(model, ctx))
        runner = open_model(model, ctx.target, self.trust_remote_code, is_timed=True)
        if isinstance(runner, Session):
            step = runner.step(batch.inputs, self.io_binding)
        elif self.io_binding:
            raise ColdpressError("io_binding is for ONNX models; this is a Hugging Face folder", hint="leave it out")
        else:
            step = runner.step(batch.inputs)
        runner.run(batch.inputs)  # says what is wrong, if anything is
        seconds = self._timed(step, ctx)
        shapes = {name: list(array.shape) for name, array in batch.inputs.items()}
        return {**_summary(seconds, batch.size), "threads": ctx.target.thread_count, "inputs": shapes}

    def _timed(self, step: Callable[[], object], ctx: Context) -> np.ndarray:
        """Seconds of each timed run; Python's garbage collector rests meanwhile, as in timeit."""
        seconds = []
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            for done in range(self.warmup + self.repeats):
                time.sleep(self.sleep_ms / 1e3)
                start = time.perf_counter()
                step()
                end = time.perf_counter()
                seconds += [end - start] if done >= self.warmup else []
                ctx.progress("timing", done + 1, self.warmup + self.repeats)
        finally:
            if was_collecting:
                gc.enable()
        return np.array(seconds)


def _summary(seconds: np.ndarray, batch_size: int) -> dict[str, float]:
    found = {"avg": seconds.mean(), "min": seconds.min(), "max": seconds.max()}
    found |= {name: np.quantile(seconds, share) for name, share in _SHARES.items()}
    stretches = [np.median(part) for part in np.array_split(seconds, min(5, len(seconds)))]
    return {
        **{f"latency_{name}_ms": float(value) * 1e3 for name, value in found.items()},
        "latency_noise_ms": float(max(stretches) - min(stretches)) / 2 * 1e3,
        **{f"throughput_{name}": batch_size / float(value) for name, value in _slowest_last(found).items()},
    }


def _slowest_last(found: dict[str, Any]) -> dict[str, Any]:
    """The times behind throughputs: the lowest throughput is that of the longest run."""
    return {**found, "min": found["max"], "max": found["min"]}
