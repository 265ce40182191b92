"""A model that is not there yet, as the checks of the passes after it see it; and what a check may ask of either kind
of model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coldpress.models import adapter_folder
from coldpress.models.model import Model
from coldpress.models.provenance import Provenance


@dataclass(frozen=True)
class Planned:
    """What a pass is going to make, as far as that is known before. It has no path: nobody can look into it.

    ``settings``: a folder at hand whose config.json and tokenizer it will have. ``weights``: a folder at hand whose
    weights it will have, or others in the same types and on the same grids. ``adapters``: PEFT folders at hand that
    will lie beside it, by name.
    """

    format: str
    provenance: Provenance = Provenance()
    settings: Path | None = None
    weights: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)


def settings_of(model: Model | Planned) -> Path | None:
    """The folder with config.json and the tokenizer of a Hugging Face model, with adapters or not; None where there is
    none yet."""
    return model.settings if isinstance(model, Planned) else _base(model)


def weights_of(model: Model | Planned) -> Path | None:
    """The folder that holds the weights of a Hugging Face model, or weights on the same grids; None where there is none
    yet."""
    return model.weights if isinstance(model, Planned) else _base(model)


def adapters_of(model: Model | Planned) -> dict[str, Path]:
    """The PEFT folders beside a model by name; empty where there are none, or none yet."""
    if isinstance(model, Planned):
        return dict(model.adapters)
    return adapter_folder.read(model.path).adapters if model.format == "adapter" else {}


def _base(model: Model) -> Path | None:
    return adapter_folder.base_of(model.path) if model.format in ("hf", "multimodal", "adapter") else None
