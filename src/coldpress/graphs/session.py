"""An ONNX model of any kind, opened by ONNX Runtime with the session options that belong to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.graphs.signature import Input, empty_cache, signature
from coldpress.models.onnx_folder import graph_file, read_genai_config
from coldpress.networks.inputs import matched
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

#: beside the graph: how it is to be opened, as a pass found it best
OPTIONS_FILE = "session_options.json"
_LEVELS = {
    "disable_all": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
_THREADS = ("intra_op_num_threads", "inter_op_num_threads")
_KEYS = ("graph_optimization_level", *_THREADS, "execution_mode", "config_entries")
#: execution provider -> its options; they hold where that one runs the model
_OF_PROVIDERS = "provider_options"
_DEVICES = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}

#: entries of a session that nobody times: its threads sleep when they wait. ONNX Runtime lets them spin, and apps have
#: it so, but on a machine that others use they spin on the processor that they wait for
RESTING = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}


class Session:
    """``path`` is a graph or a folder with one. ``inputs``: name -> what must be fed; ``outputs``: names.

    ``options`` go over those in the folder's session_options.json: ``graph_optimization_level`` (disable_all, basic,
    extended, layout, all), ``intra_op_num_threads``, ``inter_op_num_threads``, ``execution_mode`` (sequential,
    parallel), ``config_entries``, ``provider_options`` (execution provider -> its options). Where neither says so, the
    target decides the number of threads. ``is_timed``: its threads wait as in an app, spinning; else they sleep, unless
    those options say how they wait.
    """

    def __init__(self, path: Path, target: Target, options: Mapping[str, Any] | None = None, *, is_timed: bool = False):
        import onnxruntime

        self.file = graph_file(Path(path))
        self.inputs: dict[str, Input] = signature(self.file)
        self._config = read_genai_config(self.file.parent)
        self._device = _DEVICES.get(target.provider, "cpu")
        chosen = {"intra_op_num_threads": target.thread_count, **read_options(self.file.parent), **(options or {})}
        if not is_timed:
            chosen["config_entries"] = {**RESTING, **(chosen.get("config_entries") or {})}
        if not target.is_here:
            raise ColdpressError(f"{target.provider} is not on this machine, so {self.file} cannot run on it here")
        own = (chosen.pop(_OF_PROVIDERS, None) or {}).get(target.provider, {})
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.file), session_options(chosen), providers=[(target.provider, own)]
            )
        except runtime_errors() as error:
            raise self._failed(error) from error
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by its name, for arrays by the names of inputs."""
        return self.outputs_for(self._feeds(inputs))

    def outputs_for(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Every output by its name, for an array or OrtValue by the name of every input, each in the type of that."""
        try:
            found = self._session.run(None, dict(feeds))
        except runtime_errors() as error:
            raise self._failed(error) from error
        return dict(zip(self.outputs, found, strict=True))

    def step(self, inputs: Mapping[str, np.ndarray], io_binding: bool = False) -> Callable[[], object]:
        """One run with these arrays, to be called as often as one likes.

        ``io_binding``: inputs and outputs stay where the device has them; else they are numpy arrays, as most programs
        have it.
        """
        feeds = self._feeds(inputs)
        if not io_binding:
            return lambda: self._session.run(None, feeds)
        texts = [name for name, feed in feeds.items() if isinstance(feed, np.ndarray) and feed.dtype.kind in "OUS"]
        if texts:
            raise ColdpressError(f"io_binding: ONNX Runtime binds no texts, such as '{texts[0]}'", hint="leave it out")
        binding = self._session.io_binding()
        for name, value in self._values(inputs, self._device).items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, self._device)

        def bound() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return bound

    def _values(self, inputs: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, Any]:
        from onnxruntime import OrtValue

        return {
            name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed), device, 0)
            if isinstance(feed, np.ndarray)
            else feed
            for name, feed in self._feeds(inputs).items()
        }

    def _feeds(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What the graph takes, in its types; what follows from the token ids is made where the data does not give
        it."""
        given = matched(inputs, self._named(), str(self.file))
        batch = len(next(iter(given.values())))
        feeds: dict[str, Any] = {}
        for name, wanted in self.inputs.items():
            if name in given:
                feeds[name] = _cast(given[name], wanted)
            elif wanted.is_cache:
                feeds[name] = empty_cache(name, wanted.kind, wanted.shape, self._config, batch)
            elif name in _FROM_TOKENS and "input_ids" in given:
                feeds[name] = _FROM_TOKENS[name](given).astype(wanted.dtype)
            else:
                raise ColdpressError(
                    f"{self.file} has an input '{name}', which the data does not give; it gives: {', '.join(inputs)}",
                    hint="use data of another kind, or name its arrays as the model names its inputs",
                )
        return feeds

    def _named(self) -> list[str]:
        """The inputs that data can be for."""
        return [name for name, wanted in self.inputs.items() if not wanted.is_cache]

    def _failed(self, error: Exception) -> ColdpressError:
        return ColdpressError(f"ONNX Runtime cannot run {self.file}: {error}", exit_code=WORK_FAILED)


def _cast(array: np.ndarray, wanted: Input) -> np.ndarray:
    """An array in the input's type; ColdpressError where that would change its numbers beyond rounding."""
    if array.dtype == wanted.dtype:
        return array
    if array.dtype.kind in "US" and wanted.dtype.kind == "O":
        return array.astype(object)
    both_whole = array.dtype.kind in "iub" and wanted.dtype.kind in "iub"
    to_float = wanted.dtype.kind not in "iub" and array.dtype.kind in "iubf"
    if not both_whole and not to_float:
        raise ColdpressError(f"input '{wanted.name}' takes {wanted.dtype}; the data gives {array.dtype}")
    return array.astype(wanted.dtype)


def _positions(given: Mapping[str, np.ndarray]) -> np.ndarray:
    """Places of the tokens, counted without padding."""
    mask = given.get("attention_mask", np.ones_like(given["input_ids"]))
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


_FROM_TOKENS: dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {
    "attention_mask": lambda given: np.ones_like(given["input_ids"]),
    "token_type_ids": lambda given: np.zeros_like(given["input_ids"]),
    "position_ids": _positions,
}


def read_options(folder: Path) -> dict[str, Any]:
    """What session_options.json in a folder says; nothing when there is none."""
    file = folder / OPTIONS_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ColdpressError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ColdpressError(f"{file} holds no options")
    return found


def session_options(chosen: Mapping[str, Any]) -> Any:
    """ONNX Runtime's SessionOptions; ColdpressError for an option or a value that it does not have."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in chosen.items():
        if key not in _KEYS:
            raise ColdpressError(f"session options: there is no '{key}'", hint=did_you_mean(key, _KEYS))
        if value is None:
            continue
        if key in _THREADS:
            setattr(options, key, int(value))
        elif key == "config_entries":
            for name, entry in value.items():
                options.add_session_config_entry(str(name), str(entry))
        else:
            known = _LEVELS if key == "graph_optimization_level" else _MODES
            if value not in known:
                raise ColdpressError(f"session options: {key} is {value!r}", hint=did_you_mean(str(value), known))
            kinds = onnxruntime.GraphOptimizationLevel if known is _LEVELS else onnxruntime.ExecutionMode
            setattr(options, key, getattr(kinds, known[value]))
    return options


def options_for_work(threads: int) -> Any:
    """ONNX Runtime's SessionOptions for a session that nobody times."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in RESTING.items():
        options.add_session_config_entry(name, value)
    return options


def session_of(graph: ir.Model, threads: int, provider: str) -> Any:
    """A session of a graph in memory, whose large tensors stay in their files; for work that nobody times."""
    import onnx_ir as ir
    import onnxruntime

    from coldpress.models.external_data import below_one_folder

    options, proto = options_for_work(threads), ir.to_proto(graph)
    if folder := below_one_folder(proto.graph):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=[provider])


def runtime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a graph that it cannot load or run; its exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    at_load = (state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented, state.NoSuchFile, state.EPFail)
    return (*at_load, state.Fail, state.InvalidArgument, state.RuntimeException, ValueError, RuntimeError)
