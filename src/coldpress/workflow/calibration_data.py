"""What to calibrate on, said in a few options, as a source of data.

The command line and the Python API take these options; workflow files of before had them among a pass's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import PurePath
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.workflow import is_open

#: option -> parameter of the kind ``calibration_text``
_PARAMETERS = {
    "data_name": "data_name",
    "data_files": "data_files",
    "text_template": "text_template",
    "use_chat_template": "chat_template",
    "max_seq_len": "max_seq_len",
    "num_samples": "max_samples",
}
TEXT_OPTIONS = tuple(_PARAMETERS)
#: all that says what to calibrate on
DATA = (*TEXT_OPTIONS, "data")
#: passes that calibrate, with the source of data in the parameter ``data``
CALIBRATING = ("quantize", "quantize_onnx", "rotate")
#: so much of the shipped text as the widest layer needs
AS_NEEDED: dict[str, Any] = {"type": "calibration_text", "parameters": {"max_samples": None}}


def with_data(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with ``data`` in place of `TEXT_OPTIONS`; as they are where none of these is given."""
    texts = {name: options[name] for name in TEXT_OPTIONS if options.get(name) is not None}
    others = {name: value for name, value in options.items() if name not in TEXT_OPTIONS}
    if not texts:
        return others
    if others.get("data") is not None:
        name = next(iter(texts))
        raise ColdpressError(f"{name} has no effect beside data", hint="put it into the parameters of the data")
    open_ones = [name for name in texts if is_open(texts[name])]
    if not open_ones:
        return {**others, "data": _source(texts)}
    choices = [_choice(name, texts[name]) for name in open_ones]
    sources = [_source({**texts, **dict(zip(open_ones, one, strict=True))}) for one in product(*choices)]
    return {**others, "data": {"choice": sources}}


def _choice(name: str, value: Mapping[str, Any]) -> list[Any]:
    if set(value) != {"choice"}:
        raise ColdpressError(
            f"{name} of a calibration is open as a choice only", hint="write data: {choice: [...]}, or {choice: [...]}"
        )
    return list(value["choice"])


def _source(texts: Mapping[str, Any]) -> dict[str, Any]:
    """A text, or the arrays of a .npz file, named as the model's inputs."""
    named = texts.get("data_files", ())
    files = [named] if isinstance(named, str | PurePath) else list(named)
    arrays = [file for file in files if PurePath(file).suffix == ".npz"]
    if not arrays:
        parameters = {ours: texts[name] for name, ours in _PARAMETERS.items() if name in texts}
        if files:
            parameters["data_files"] = [str(file) for file in files]
        if parameters.get("max_samples") == 0:
            parameters["max_samples"] = None
        return {"type": "calibration_text", "parameters": parameters}
    if len(files) > 1:
        raise ColdpressError(f"data_files: {arrays[0]} cannot be joined with other files", hint="pass it alone")
    for name in texts:
        if name not in ("data_files", "num_samples"):
            raise ColdpressError(f"{name} has no effect on arrays of a .npz file", hint=f"leave out --{name}")
    limit = {"max_samples": texts["num_samples"]} if texts.get("num_samples") else {}
    return {"type": "arrays", "parameters": {"file": str(arrays[0]), **limit}}
