"""An ONNX model opened by ONNX Runtime with the session options that belong to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.graphs.runtime import graph_file
from coldpress.target import Target

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


class Session:
    """``path`` is a graph or a folder with one.

    ``options`` go over those in the folder's session_options.json: ``graph_optimization_level`` (disable_all, basic, extended,
    layout, all), ``intra_op_num_threads``, ``inter_op_num_threads``, ``execution_mode`` (sequential, parallel), ``config_entries``.
    Where neither says so, the target decides the number of threads.
    """

    def __init__(self, path: Path, target: Target, options: Mapping[str, Any] | None = None):
        import onnxruntime

        self.file = path if path.is_file() else graph_file(path)
        chosen = {"intra_op_num_threads": target.thread_count, **read_options(self.file.parent), **(options or {})}
        if not target.is_here:
            raise ColdpressError(f"{target.provider} is not on this machine, so {self.file} cannot run on it here")
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.file), session_options(chosen), providers=[target.provider]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ColdpressError(f"ONNX Runtime cannot open {self.file}: {error}", exit_code=WORK_FAILED) from error

    def step(self, inputs: Mapping[str, np.ndarray], io_binding: bool = False) -> Callable[[], object]:
        """One run with these arrays, to be called as often as one likes."""
        from onnxruntime import OrtValue

        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        values |= self._caches(values)
        if not io_binding:
            return lambda: self._session.run_with_ort_values(None, values)
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name)
        return lambda: self._session.run_with_iobinding(binding)

    def _caches(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Empty caches of keys and values, where the graph takes them."""
        from coldpress.graphs.foreign.folder import load_graph
        from coldpress.graphs.foreign.inputs import Inputs

        inputs = Inputs.of(load_graph(self.file).graph, self.file.parent)
        return {name: inputs.empty(name) for name in inputs.wanted if name not in given and name.startswith("past")}


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
