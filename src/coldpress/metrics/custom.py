"""Numbers of the user's own, from a function in a Python file.

Without data the function is called as ``function(model, target, **arguments)``, with the path of the model and where it
shall run. With data it is called as ``function(batches, **arguments)``; ``batches`` gives a triple ``(outputs, labels,
inputs)`` for each batch that the model was run on, one at a time. It gives a number, or a mapping of names to numbers.
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
from coldpress.parts import Context, DataSource, Metric, Value, option
from coldpress.parts.user_script import UserFunction

_BETTER = ("lower", "higher", "neither")


@dataclass(frozen=True)
class Custom(Metric):
    """What the function gives; ``values`` are the numbers that were named, else one of the name ``value``."""

    script: str | None = option("Python file with the function; it is run", None)
    function: str | None = option("name of the function in it", None)
    arguments: dict[str, Any] = option("what it is called with besides", dict)
    data: DataSource | None = option("batches that the model is run on", None)
    numbers: dict[str, str] = option("names of the numbers, each with lower, higher or neither: what is better", dict)
    unit: str = option("unit of the numbers", "")
    trust_remote_code: bool = option("run model code from a Hugging Face folder", False)

    values: ClassVar[Mapping[str, Value]] = {"value": Value("higher")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf", "gguf")
    reads: ClassVar[tuple[str, ...]] = ("script",)

    def __post_init__(self) -> None:
        for name, better in self.numbers.items():
            if better not in _BETTER:
                raise ColdpressError(f"custom: numbers.{name} is '{better}'", hint=f"say {' or '.join(_BETTER)}")
        named = {name: Value(better, self.unit) for name, better in (self.numbers or {"value": "higher"}).items()}
        object.__setattr__(self, "values", named)

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        function = UserFunction(self.script, self.function)
        if self.data is None:
            given = function(model.path, ctx.target, **self.arguments)
        else:
            given = function(self._outputs(self.data, model, ctx), **self.arguments)
        found = dict(given) if isinstance(given, Mapping) else {"value": given}
        for name in self.values:
            value = found.get(name)
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or math.isnan(value):
                seen = ", ".join(f"{key}: {one!r}" for key, one in found.items())
                raise ColdpressError(
                    f"{self.script}: {self.function}() gives no number '{name}', but {seen[:200]}",
                    hint="name what it gives under 'numbers'",
                    exit_code=WORK_FAILED,
                )
        strange = [name for name in found if name not in self.values]
        if strange:
            raise ColdpressError(
                f"{self.script}: {self.function}() gives '{strange[0]}', which is not named",
                hint=f"numbers: {{{strange[0]}: higher}}",
            )
        return {name: float(found[name]) for name in self.values}

    def _outputs(self, data: DataSource, model: Model, ctx: Context) -> Iterator[tuple[Any, Any, Any]]:
        runner = open_model(model, ctx.target, self.trust_remote_code)
        for number, batch in enumerate(data.batches(model, ctx), start=1):
            yield runner.run(batch.inputs), batch.labels, batch.inputs
            ctx.progress(f"{self.function}()", number, 0)
