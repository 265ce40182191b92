"""Numbers of the user's own, from a function in a Python file.

Without data the function is called as ``function(model, target, **arguments)``, with the path of the model and where it
shall run. With data it is called as ``function(batches, **arguments)``; ``batches`` gives a triple ``(outputs, labels,
inputs)`` for each batch that the model was run on, one at a time. It gives a number, or a mapping of names to numbers.

A function that was written for Olive is named in ``evaluate_func``: it is called as ``function(model, device,
execution_providers, **arguments)``, with ``data_dir`` and ``batch_size`` behind the model where they are given.
``model`` has ``model_path``, ``load_model()`` and ``prepare_session()``, an InferenceSession of ONNX Runtime.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.measuring.inference import open_model
from coldpress.models.model import Model
from coldpress.models.onnx_folder import graph_file
from coldpress.parts import Context, DataSource, Metric, Value, option
from coldpress.parts.olive_script import olive_function
from coldpress.parts.user_script import UserFunction
from coldpress.target import Target

_BETTER = ("lower", "higher", "neither")


@dataclass(frozen=True)
class Custom(Metric):
    """What the function gives; ``values`` are the numbers that were named, else one of the name ``value``."""

    script: str | None = option("Python file with the function; it is run", None)
    function: str | None = option("name of the function in it", None)
    evaluate_func: str | None = option("name of a function in it that was written for Olive, instead", None)
    script_dir: str | None = option("folder that such a script imports from, beside its own", None)
    data_dir: str | None = option("what such a function is called with for its data", None)
    batch_size: int | None = option("what such a function is called with for samples of a batch", None)
    arguments: dict[str, Any] = option("what it is called with besides", dict)
    data: DataSource | None = option("batches that the model is run on", None)
    numbers: dict[str, str] = option("names of the numbers, each with lower, higher or neither: what is better", dict)
    unit: str = option("unit of the numbers", "")
    trust_remote_code: bool = option("run model code from a Hugging Face folder", False)

    values: ClassVar[Mapping[str, Value]] = {"value": Value("higher")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf", "gguf")
    reads: ClassVar[tuple[str, ...]] = ("script", "script_dir", "data_dir")

    def __post_init__(self) -> None:
        for name, better in self.numbers.items():
            if better not in _BETTER:
                raise ColdpressError(f"custom: numbers.{name} is '{better}'", hint=f"say {' or '.join(_BETTER)}")
        of_olive = ("script_dir", "data_dir", "batch_size") if self.evaluate_func is None else ()
        of_ours = ("function", "data") if self.evaluate_func is not None else ()
        for name in (*of_olive, *of_ours):
            if getattr(self, name) is not None:
                beside = "without" if of_olive else "beside"
                raise ColdpressError(f"custom: {name} has no effect {beside} evaluate_func", hint="leave one out")
        named = {name: Value(better, self.unit) for name, better in (self.numbers or {"value": "higher"}).items()}
        object.__setattr__(self, "values", named)

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        if self.evaluate_func is not None:
            return self._named(self._evaluated(model, ctx), self.evaluate_func)
        function = UserFunction(self.script, self.function)
        if self.data is None:
            given = function(model.path, ctx.target, **self.arguments)
        else:
            given = function(self._outputs(self.data, model, ctx), **self.arguments)
        return self._named(given, str(self.function))

    def _evaluated(self, model: Model, ctx: Context) -> Any:
        """What a function of Olive's gives."""
        function = olive_function(self.script, self.evaluate_func, folder=self.script_dir)
        about = {"data_dir": self.data_dir, "batch_size": self.batch_size}
        given = [one for one in about.values() if one is not None]
        where = ctx.target.device, [ctx.target.provider]
        return function(_OliveModel(model, ctx.target), *given, *where, **self.arguments)

    def _named(self, given: Any, function: str) -> dict[str, Any]:
        """The numbers that were asked for, of what a function gives."""
        only = next(iter(self.values)) if len(self.values) == 1 else "value"
        found = dict(given) if isinstance(given, Mapping) else {only: given}
        for name in self.values:
            value = found.get(name)
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or math.isnan(value):
                seen = ", ".join(f"{key}: {one!r}" for key, one in found.items())
                raise ColdpressError(
                    f"{self.script}: {function}() gives no number '{name}', but {seen[:200]}",
                    hint="name what it gives under 'numbers'",
                    exit_code=WORK_FAILED,
                )
        strange = [name for name in found if name not in self.values]
        if strange:
            raise ColdpressError(
                f"{self.script}: {function}() gives '{strange[0]}', which is not named",
                hint=f"numbers: {{{strange[0]}: higher}}",
            )
        return {name: float(found[name]) for name in self.values}

    def _outputs(self, data: DataSource, model: Model, ctx: Context) -> Iterator[tuple[Any, Any, Any]]:
        runner = open_model(model, ctx.target, self.trust_remote_code)
        for number, batch in enumerate(data.batches(model, ctx), start=1):
            yield runner.run(batch.inputs), batch.labels, batch.inputs
            ctx.progress(f"{self.function}()", number, 0)


@dataclass(frozen=True)
class _OliveModel:
    """A model as Olive's scripts know it."""

    model: Model
    target: Target

    @property
    def model_path(self) -> str:
        return str(graph_file(self.model.path) if self.model.format == "onnx" else self.model.path)

    def load_model(self, *_: Any, **__: Any) -> Any:
        """The graph, or the network of transformers."""
        if self.model.format != "onnx":
            from transformers import AutoModel

            return AutoModel.from_pretrained(self.model_path)
        import onnx

        return onnx.load(self.model_path)

    def prepare_session(self, *_: Any, **__: Any) -> Any:
        """The graph, open in ONNX Runtime."""
        import onnxruntime

        from coldpress.graphs.session import options_for_work

        options = options_for_work(self.target.thread_count)
        return onnxruntime.InferenceSession(self.model_path, options, providers=[self.target.provider])
