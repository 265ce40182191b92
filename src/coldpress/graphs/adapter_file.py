"""Adapter files of ONNX Runtime (``.onnx_adapter``): named tensors that fill the optional inputs of a graph.

The format is ONNX Runtime's own (https://onnxruntime.ai/docs/genai/how-to/multilora.html), written and read by
``AdapterFormat``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError, raised_as
from coldpress.graphs.lora_metadata import Piece, Slot
from coldpress.models.low_rank import LowRank, stacked
from coldpress.models.peft import Adapter

SUFFIX = ".onnx_adapter"
#: forms that tensors of an adapter are written in, and how their files end
FORMATS = {"onnx_adapter": SUFFIX, "safetensors": ".safetensors", "numpy": ".npz"}
#: what the file of an adapter is called that is alone
_ALONE = "adapter_weights"
_VERSION = 1


def fill_slots(slots: Iterable[Slot], layers: Mapping[str, LowRank]) -> dict[str, np.ndarray]:
    """What an adapter puts into slots, by input name; slots of modules that it leaves alone are left out.

    Raises ColdpressError for numbers that are none, or too large for the slots' type.
    """
    arrays = {}
    for slot in slots:
        if not any(piece.module in layers for piece in slot.pieces):
            continue
        parts = [
            layers[piece.module].rows(piece.start, piece.stop) if piece.module in layers else piece.stop - piece.start
            for piece in slot.pieces
        ]
        a, b = stacked(parts).factors()
        with np.errstate(over="ignore"):  # said below
            arrays[slot.a], arrays[slot.b] = a.astype(slot.dtype), b.astype(slot.dtype)
        for name in (slot.a, slot.b):
            if not np.isfinite(arrays[name]).all():
                raise ColdpressError(
                    f"the adapter's values for '{name}' hold NaN or infinity in {slot.dtype}",
                    hint="its training diverged; use an earlier checkpoint",
                )
    return arrays


def fitted(adapter: Adapter, slots: list[Slot], model: Path) -> dict[str, LowRank]:
    """An adapter's layers, checked against the slots of a graph whose base is not at hand.

    Raises ColdpressError for a graph without slots, and for modules and shapes that these have no place for.
    """
    if not slots:
        raise ColdpressError(
            f"'{model}' has no LoRA slots", hint="press it with them: coldpress auto-opt -m BASE --adapter_path ADAPTER"
        )
    known: dict[str, Slot] = {piece.module: slot for slot in slots for piece in slot.pieces}
    for module, layer in adapter.layers.items():
        if module not in known:
            raise ColdpressError(
                f"adapter '{adapter.folder}' changes '{module}', for which '{model}' has no slot",
                hint="press the base again with this adapter in --adapter_path, too",
            )
        rows = sum(piece.stop - piece.start for slot in slots for piece in slot.pieces if piece.module == module)
        if (layer.outputs, layer.inputs) != (rows, known[module].inputs):
            raise ColdpressError(
                f"adapter '{adapter.folder}' has '{module}' for a weight [{layer.outputs}, {layer.inputs}], "
                f"in '{model}' it is [{rows}, {known[module].inputs}]",
                hint="was it trained on another model?",
            )
    return adapter.layers


def beside(folder: Path, name: str, count: int) -> Path:
    """The file of an adapter in a pressed model's folder, where there are so many of them."""
    return folder / f"{_ALONE if count == 1 else name}{SUFFIX}"


def write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write tensors as an adapter file."""
    from onnxruntime import AdapterFormat, OrtValue

    adapter = AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    values = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    adapter.set_parameters(values)
    adapter.export_adapter(str(file))


def by_modules(layers: Mapping[str, LowRank], dtype: str) -> dict[str, np.ndarray]:
    """A pair of tensors for each module under its own name, as graphs whose layers are not joined have them for
    inputs."""
    slots = [Slot(name, layer.inputs, (Piece(name, 0, layer.outputs),), dtype) for name, layer in layers.items()]
    return fill_slots(slots, layers)


def save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write tensors in the form that the file's name ends with, one of ``FORMATS``."""
    if file.suffix == FORMATS["safetensors"]:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)
    elif file.suffix == FORMATS["numpy"]:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # none is called as its flag
    else:
        write(file, arrays)


def read_adapter(file: Path) -> dict[str, Any]:
    """An adapter file's tensors (``OrtValue``) by the inputs that they are for.

    Raises ColdpressError for a file that is none.
    """
    from onnxruntime import AdapterFormat

    if not file.is_file():
        raise ColdpressError(f"adapter file '{file}' does not exist")

    def told(error: BaseException) -> ColdpressError:
        return ColdpressError(
            f"'{file}' is no adapter file of ONNX Runtime: {str(error).splitlines()[0]}",
            hint="pass an .onnx_adapter file, or a PEFT folder",
        )

    with raised_as(told):
        return dict(AdapterFormat.read_adapter(str(file)).get_parameters())


def check_fits(file: Path, slots: list[Slot], model: Path) -> None:
    """Refuse an adapter file whose tensors are not those of a graph's slots."""
    wanted = {slot.a: slot for slot in slots} | {slot.b: slot for slot in slots}
    for name, value in read_adapter(file).items():
        slot, shape = wanted.get(name), tuple(value.shape())
        size = None if slot is None else (shape[0] == slot.inputs if name == slot.a else shape[1] == slot.outputs)
        if not size:
            problem = (
                f"'{name}', which is no input of" if slot is None else f"'{name}' {list(shape)}, which does not fit"
            )
            raise ColdpressError(
                f"adapter file '{file}' has {problem} '{model}'",
                hint="it was made for another model: press the base with this adapter in --adapter_path",
            )
