"""How far the answers of a model are from those of its source, as its task has it.

The source is what transformers loads, in float32. Both are asked the same; the task says what, what of the outputs is
an answer, and by which numbers answers are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.measuring.inference import Runner, open_model
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.model import Model
from coldpress.networks.torch_model import TorchModel
from coldpress.parts import Context, Metric, Value, option
from coldpress.parts.task import Task, find_task


@dataclass(frozen=True)
class TaskDivergence(Metric):
    """Compares a model with ``ctx.source``, the Hugging Face folder that it was made from."""

    task: str = option("name of the task", "feature_extraction")
    files: tuple[str, ...] = option("text or jsonl files instead of the built-in text", ())
    max_memory: float | None = option("gigabytes that the source may take; default: half of what is free", None)
    trust_remote_code: bool = option("run model code from the source folder", False)

    version: ClassVar[int] = 2
    values: ClassVar[Mapping[str, Value]] = {
        "kl": Value("lower", "nats"),
        "label_agreement": Value("higher"),
        "distance": Value("lower"),
        "cosine": Value("higher"),
        "least_cosine": Value("higher"),
        "ranking": Value("higher"),
        "box_overlap": Value("higher"),
        "object_agreement": Value("higher"),
        "overlap": Value("higher"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")
    reads: ClassVar[tuple[str, ...]] = ("files",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "transformers")

    def __post_init__(self) -> None:
        criteria = find_task(self.task).criteria
        object.__setattr__(self, "values", {one.name: type(self).values[one.name] for one in criteria})

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        """The numbers of the task's criteria, and ``compared``, how many answers they are of."""
        if ctx.source is None or ctx.source.format != "hf":
            raise ColdpressError("task_divergence needs the Hugging Face model to compare with")
        self._require_room(ctx.source)
        task, asked = find_task(self.task), ctx.source.path
        source = TorchModel(asked, ctx.target.thread_count, trust_remote_code=self.trust_remote_code)
        made = task.examples(asked, source.inputs, self.files, self.trust_remote_code)
        examples = [task.completed(asked, one, source.generate) for one in made]
        expected = _answers(task, asked, source, examples, ctx, 0)
        del source
        found = _answers(task, asked, open_model(model, ctx.target, self.trust_remote_code), examples, ctx, 1)
        return {**task.compare(expected, found), "samples": sum(len(next(iter(one.values()))) for one in examples)}

    def _require_room(self, source: Model) -> None:
        """Refuse a source that does not fit into memory as float32."""
        import psutil

        weights = sum(math.prod(span.shape) for span in Checkpoint(source.path).tensors.values())
        needed, room = 4 * weights, self.max_memory
        budget = psutil.virtual_memory().available / 2 if room is None else room * 1e9
        if needed > budget:
            raise ColdpressError(
                f"to load {source.path} takes {needed / 1e9:.1f} GB of memory, more than the {budget / 1e9:.1f} GB for"
                " it",
                hint="allow more with --verify_memory, or turn verification off with --no_verify",
            )


def _answers(
    task: Task, folder: Path, runner: Runner, examples: Sequence[Mapping[str, np.ndarray]], ctx: Context, turn: int
) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for number, one in enumerate(examples, start=1):
        rows += task.answers(folder, one, runner.run(one))
        ctx.progress("comparing with the source", number + turn * len(examples), 2 * len(examples))
    return rows
