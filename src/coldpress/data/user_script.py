"""Batches as scripts make them that were written for Olive.

Either ``dataloader_func(data_dir, batch_size, **func_kwargs)`` gives them; or, as in data configs of today,
``load_dataset`` gives rows, ``pre_process_data`` changes them and ``dataloader`` makes batches of them: each a mapping
with the ``type`` that a function of the script has or was registered under, and its parameters. A batch is a mapping of
input names, a tensor, or one of these with labels. The script is run in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from coldpress.data.script import batch_of
from coldpress.errors import ColdpressError
from coldpress.models.model import Model, find_graphs
from coldpress.models.planned import Planned
from coldpress.parts import Batch, Context, Data, option
from coldpress.parts.olive_script import olive_function
from coldpress.parts.user_script import each_of, require_script

#: components of Olive's own that a script may stand beside
_HUB, _NOTHING = "huggingface_dataset", ("", "local_dataset", "simple_dataset")
_SKIPPED = ("", "pre_process", "skip_pre_process", "default_pre_process_data")
_LOADERS = ("", "default_dataloader", "no_auto_batch_dataloader", "default_calibration_dataloader")


@dataclass(frozen=True)
class UserScript(Data):
    """Whatever the functions of a script of Olive's give."""

    script: str | None = option("Python file with the functions; it is run", None)
    script_dir: str | None = option("folder that the script imports from, beside its own", None)
    dataloader_func: str | None = option("function that gives batches, from data_dir and batch_size", None)
    data_dir: str | None = option("what it is called with, first", None)
    batch_size: int = option("what it is called with, second; or samples of a batch", 1)
    func_kwargs: dict[str, Any] = option("what it is called with besides", dict)
    load_dataset: dict[str, Any] = option("what gives rows: its type, and parameters", dict)
    pre_process_data: dict[str, Any] = option("what changes them: its type, and parameters", dict)
    dataloader: dict[str, Any] = option("what makes batches of them: its type, and parameters", dict)
    max_batches: int | None = option("at most so many batches", None)

    reads: ClassVar[tuple[str, ...]] = ("script", "script_dir", "data_dir")
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    runs_script: ClassVar[bool] = True

    def check(self, model: Model | Planned) -> None:
        require_script(self.script)
        if (self.dataloader_func is None) == (not self.load_dataset and not self.dataloader):
            raise ColdpressError(
                "user_script: nothing says where batches come from", hint="name dataloader_func, or load_dataset"
            )

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        if self.dataloader_func is not None:
            given = self._function(self.dataloader_func)(self.data_dir, self.batch_size, **self.func_kwargs)
        else:
            given = self._batched(*_taken(self.dataloader), self._rows())
        values = islice(each_of(Path(str(self.script)), "making batches", given), self.max_batches)
        for number, value in enumerate(values, start=1):
            yield batch_of(_named(value, model), f"{self.script}: batch {number}")

    def _function(self, name: str, kind: str = "") -> Any:
        return olive_function(self.script, name, kind, self.script_dir)

    def _rows(self) -> Any:
        kind, loading = _taken(self.load_dataset)
        if kind == _HUB:
            rows = _of_hub(loading)
        else:
            rows = None if kind in _NOTHING else self._function(kind, "load_dataset")(**loading)
        kind, preparing = _taken(self.pre_process_data)
        return rows if kind in _SKIPPED else self._function(kind, "pre_process_data")(rows, **preparing)

    def _batched(self, kind: str, loading: dict[str, Any], rows: Any) -> Any:
        from torch.utils.data import DataLoader

        if kind not in _LOADERS:
            return self._function(kind, "dataloader")(rows, **loading)
        if kind == "no_auto_batch_dataloader":
            return DataLoader(rows, batch_size=None)
        size = int(loading.pop("batch_size", self.batch_size))
        return DataLoader(rows, batch_size=size, **{n: loading[n] for n in ("shuffle", "drop_last") if n in loading})


def _taken(component: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The type of a component in lower case, and its parameters."""
    return str(component.get("type") or ""), {key: value for key, value in component.items() if key != "type"}


def _of_hub(loading: dict[str, Any]) -> Any:
    from datasets import load_dataset

    given = dict(loading)
    name, subset = given.pop("data_name", None), given.pop("subset", None)
    return load_dataset(name, subset, split=given.pop("split", "validation"), **given)


def _named(value: Any, model: Model) -> Any:
    """A batch with a mapping of the model's inputs where there is a tensor or a list of them."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    inputs, labels = value if pair else (value, None)
    if not isinstance(inputs, Mapping) and not hasattr(inputs, "keys"):
        listed = inputs if isinstance(inputs, tuple | list) else (inputs,)
        inputs = dict(zip(_inputs_of(model), listed, strict=False))
    return (dict(inputs), labels) if pair else dict(inputs)


def _inputs_of(model: Model) -> list[str]:
    from coldpress.graphs.signature import signature

    graphs = list(find_graphs(Path(model.path)).values()) if model.format == "onnx" else []
    if not graphs:
        raise ColdpressError("user_script: batches of a Hugging Face model need the names of its inputs")
    return list(signature(graphs[0]))
