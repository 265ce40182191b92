"""Which reference speaks for a source: what transformers loads, where it can and memory suffices; else coldpress' own
reading.

A reference that reads files with the code that pressed them errs as that code errs. So it speaks only where nothing
else can, and, where the whole of a model is too large to be loaded, after a part of it was compared with what
transformers loads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.checkpoint import Checkpoint, Span
from coldpress.models.packed.folder import quantization_config
from coldpress.models.packed.spans import plain_tensors
from coldpress.networks.empty import layer_names
from coldpress.networks.loaded import CannotLoad, Loaded, load
from coldpress.networks.reference import Reference

if TYPE_CHECKING:
    import torch

#: what metrics say of their parameter of that name
MAX_MEMORY = "gigabytes that the source may take besides mapped files; default: half of what is free"
#: of the memory that is free, for what of a source cannot stay in mapped files
_SHARE = 0.5
_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_IDS = np.arange(3, 35)
#: between sums of float32 in another order, in units of the spread of the logits
_CLOSE = 1e-4
_SHOWN = 5
#: rows of a tensor that are cast and compared at once
_ROWS = 1024


@dataclass(frozen=True)
class Voice:
    """Who speaks for a source. ``by``: transformers or coldpress. ``compared_layers``: with what transformers loads.

    ``why``: why it is not transformers.
    """

    by: str
    says: str
    why: str = ""
    compared_layers: int = 0


def reference_of(
    folder: Path, trust_remote_code: bool = False, max_memory: float | None = None
) -> tuple[Reference, Voice]:
    """The reference for a folder, and who it is.

    ``max_memory``: gigabytes that the source may take besides mapped files; half of what is free if None. Raises
    ColdpressError where coldpress and transformers read a part of the folder differently.
    """
    by = _transformers()
    stored = Checkpoint(folder).tensors
    needed, budget = memory_needed(folder, stored), _budget(max_memory)
    if needed <= budget:
        try:
            found = load(folder, load_dtype(folder, stored), trust_remote_code)
            return Reference.of(folder, found, trust_remote_code), Voice("transformers", f"{by} loaded the source.")
        except CannotLoad as error:
            why = f"transformers cannot load it here: {error}"
            return Reference(folder, trust_remote_code), Voice("coldpress", _own_words(why), why)
    why = f"it would take {needed / 1e9:.1f} GB of memory, more than the {budget / 1e9:.1f} GB for it"
    reference = Reference(folder, trust_remote_code)
    if not reference.streamed and quantization_config(folder) is None:
        return reference, Voice("transformers", f"{by} loaded the source, which cannot be streamed.")
    try:
        layers = compare_part(folder, reference, trust_remote_code)
    except CannotLoad as error:
        why += f", and transformers cannot load a part: {error}"
        return reference, Voice("coldpress", _own_words(why), why)
    says = f"coldpress streamed the source, as {why}; the ends and {layers} layers of it are those that {by} loads."
    return reference, Voice("coldpress", says, why, layers)


def voice_of_base(base: Path, trust_remote_code: bool = False) -> Voice:
    """Who speaks for a base that PEFT puts an adapter on: coldpress reads it, after a part was compared."""
    try:
        layers = compare_part(base, Reference(base, trust_remote_code), trust_remote_code)
    except CannotLoad as error:
        why = f"transformers cannot load it here: {error}"
        return Voice("coldpress", _own_words(why), why)
    says = f"PEFT put the adapter on; the ends and {layers} layers of the base are those that {_transformers()} loads."
    return Voice("coldpress", says, "an adapter is put on a base whose weights are streamed", layers)


def _transformers() -> str:
    return f"transformers {version('transformers')}"


def _own_words(why: str) -> str:
    return f"Only coldpress' own reading of the source was compared with, as {why}"


def _budget(max_memory: float | None) -> float:
    import psutil

    return psutil.virtual_memory().available * _SHARE if max_memory is None else max_memory * 1e9


def load_dtype(folder: Path, stored: Mapping[str, Span]) -> str:
    """The float type to load a checkpoint in so that no value changes: the one it is stored in, float32 for several."""
    kinds = {_TORCH[span.dtype] for span in stored.values() if span.dtype in _TORCH}
    alone = len(kinds) == 1 and quantization_config(folder) is None
    return kinds.pop() if alone else "float32"


def memory_needed(folder: Path, stored: Mapping[str, Span]) -> int:
    """Bytes that transformers takes to load a checkpoint, besides what stays in mapped files."""
    if quantization_config(folder) is not None:
        weights = sum(math.prod(span.shape) for span in plain_tensors(folder).values())
        return 4 * weights + sum(span.bytes for span in stored.values())
    width = {"float32": 4, "float64": 8}.get(dtype := load_dtype(folder, stored), 2)
    converts = _converts(folder)
    return sum(
        width * math.prod(span.shape)
        for span in stored.values()
        if _TORCH.get(span.dtype) != dtype or (converts and len(span.shape) > 1)
    )


def _converts(folder: Path) -> bool:
    """Whether transformers makes some parameters out of several tensors, as it does with experts."""
    try:
        from transformers import AutoConfig
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:  # transformers 4 does not
        return False
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    except (ValueError, OSError):  # the model's own code is not permitted, which is said where it is loaded
        return False
    return any(isinstance(step, WeightConverter) for step in get_checkpoint_conversion_mapping(kind) or [])


def compare_part(folder: Path, whole: Reference, trust_remote_code: bool = False) -> int:
    """Compare the embedding, the first layers of each kind and the head as read here with what transformers loads.

    Gives the number of layers. Raises ColdpressError, with the names of tensors that differ, for a difference.
    """
    from transformers import AutoConfig

    count = _layers_of_each_kind(whole.network)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    found = load(folder, load_dtype(folder, Checkpoint(folder).tensors), trust_remote_code, _cut(config, count))
    ours = Reference(folder, trust_remote_code, cut=lambda config: _cut(config, count))
    names = differing(ours.values(), found)
    [mine], [theirs] = (
        reference.logits([_IDS]) for reference in (ours, Reference.of(folder, found, trust_remote_code))
    )
    difference = float(np.abs(mine - theirs).max() / theirs.std())
    if names or not difference <= _CLOSE:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        what = (
            f"{', '.join(names[:_SHOWN])}{more} differ"
            if names
            else f"logits differ by {difference:.2g} of their spread"
        )
        raise ColdpressError(
            f"coldpress reads {folder} otherwise than transformers does, so nothing can be verified: {what}",
            hint="this is a fault of coldpress: please report it, with config.json and the names above",
            exit_code=WORK_FAILED,
        )
    return count


def misread(folder: Path, trust_remote_code: bool = False) -> list[str]:
    """The parameters that coldpress reads otherwise than transformers, where the whole of a plain folder stays in
    mapped files."""
    stored = Checkpoint(folder).tensors
    if memory_needed(folder, stored):
        return []
    try:
        found = load(folder, load_dtype(folder, stored), trust_remote_code)
        return differing(Reference(folder, trust_remote_code).values(), found)
    except CannotLoad:
        return []


def differing(ours: Mapping[str, Any], theirs: Loaded) -> list[str]:
    """The parameters that both have under one name, with other values."""
    return [name for name, read in ours.items() if name in theirs.values and not _equal(read(), theirs.tensor(name))]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of any float types have the same values; some rows at a time are cast."""
    import torch

    if one.shape != other.shape:
        return False
    parts = zip(*(torch.atleast_1d(tensor).split(_ROWS) for tensor in (one, other)), strict=True)
    return all(torch.equal(own.float(), others.float()) for own, others in parts)


def _layers_of_each_kind(network: Any) -> int:
    """The least number of layers from the first on that have all sets of parameters that some layer has."""
    kinds = [
        frozenset((name, tuple(parameter.shape)) for name, parameter in network.get_submodule(layer).named_parameters())
        for layer in layer_names(network)
    ]
    return 1 + max(kinds.index(kind) for kind in set(kinds))


def _cut(config: Any, layers: int) -> Any:
    """A configuration of the first layers: lists that have an entry for each layer are cut, too."""
    config = copy.deepcopy(config)
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        whole = getattr(part, "num_hidden_layers", None)
        for name, value in list(vars(part).items()):
            if isinstance(value, list) and len(value) == whole:
                setattr(part, name, value[:layers])
        if whole is not None:
            part.num_hidden_layers = layers
    return config
