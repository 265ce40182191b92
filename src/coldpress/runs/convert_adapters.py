"""Adapters from one form into another: PEFT folders, files of named tensors, and what lies inside a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.graphs import adapter_file
from coldpress.graphs.adapter_file import FORMATS
from coldpress.graphs.lora_metadata import read_slots
from coldpress.models import inner_adapters, peft
from coldpress.models.model import Model
from coldpress.models.onnx_folder import graph_file
from coldpress.models.sources import find_model


def convert(
    folder: Path,
    file: Path,
    *,
    adapter_format: str = "onnx_adapter",
    model_name_or_path: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a PEFT folder as one file; returns what there is to know of it.

    ``model_name_or_path``: a pressed model whose slots the file shall fill; without one there is a pair of tensors for
    each module: ``MODULE.lora_A.weight`` ``[in, r]`` and ``MODULE.lora_B.weight`` ``[r, out]``, the scaling in B.
    """
    file = _place(file, adapter_format, overwrite)
    adapter = peft.read(folder.expanduser())
    if model_name_or_path is None:
        arrays = adapter_file.by_modules(adapter.layers, dtype or "float32")
    else:
        model = find_model(model_name_or_path).path
        slots = read_slots(graph_file(model))
        layers = adapter_file.fitted(adapter, slots, model)
        if dtype not in (None, *{slot.dtype for slot in slots}):
            raise ColdpressError(
                f"dtype {dtype}: the slots of '{model}' take {slots[0].dtype}", hint="leave --dtype out"
            )
        arrays = adapter_file.fill_slots(slots, layers)
    file.parent.mkdir(parents=True, exist_ok=True)
    adapter_file.save(file, arrays)
    return {"file": str(file), **_facts(adapter), "bytes": file.stat().st_size}


def extract(
    model: Model, folder: Path, *, form: str = "peft", dtype: str = "float32", overwrite: bool = False
) -> list[dict[str, Any]]:
    """Write each adapter inside a checkpoint to ``folder``: as a PEFT folder of its name, or as a file of its name."""
    found = inner_adapters.find(model.path) if model.format == "hf" else {}
    if not found:
        raise ColdpressError(
            f"{model.path} has no adapters inside", hint="a PEFT folder is one already: see convert-adapters"
        )
    written = []
    for name, tensors in found.items():
        with tempfile.TemporaryDirectory(prefix="coldpress-") as scratch:
            place = folder / name if form == "peft" else Path(scratch) / name
            if form == "peft" and place.exists() and not overwrite:
                raise ColdpressError(f"'{place}' is there already", hint="choose another folder, or add --overwrite")
            inner_adapters.write(model, name, tensors, place, dtype)
            facts = {"name": name, "path": str(place), **_facts(peft.read(place))}
            if form != "peft":
                made = convert(place, folder / name, adapter_format=form, dtype=dtype, overwrite=overwrite)
                facts["path"] = made["file"]
        written.append(facts)
    return written


def _place(file: Path, form: str, overwrite: bool) -> Path:
    """Where to write: a name without the suffix of its form gets it."""
    suffix = FORMATS[form]
    placed = file if file.suffix == suffix else file.with_name(f"{file.name}{suffix}")
    if placed.exists() and not overwrite:
        raise ColdpressError(f"'{placed}' is there already", hint="choose another name, or add --overwrite")
    return placed


def _facts(adapter: peft.Adapter) -> Mapping[str, Any]:
    layers = adapter.layers.values()
    return {"modules": len(layers), "ranks": sorted({layer.rank for layer in layers})}
