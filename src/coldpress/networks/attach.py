"""A transformers model with an adapter, to compare a pressed one with."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models import peft
from coldpress.models.adapter_base import Base, on_base
from coldpress.models.low_rank import LowRank

#: what PEFT calls the adapter within its modules
_NAME = "coldpress"


def attach(model: Any, folder: Path, base: Path) -> str:
    """Put an adapter into a transformers model's modules, which may be on ``meta`` still; says who did it.

    That is PEFT, as far as it is installed and the adapter's modules are those of the model; else coldpress.
    """
    adapter = peft.read(folder)
    layers = on_base(adapter, Base.read(base))
    if set(layers) == set(adapter.layers) and find_spec("peft"):
        _attach_by_peft(model, folder)
        return "PEFT"
    modules = dict(model.named_modules())
    for name, layer in layers.items():
        modules[name].register_forward_hook(_adding(layer))
    return "coldpress"


def _attach_by_peft(model: Any, folder: Path) -> None:
    """PEFT puts its modules in. Its own loading of their weights would move them to ``meta``, where the base's are."""
    from peft import PeftConfig, inject_adapter_in_model
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    inject_adapter_in_model(config, model, adapter_name=_NAME, low_cpu_mem_usage=True)
    empty = {name.replace(f".{_NAME}", ""): name for name, _ in model.named_parameters() if f".{_NAME}" in name}
    stored = {
        name.removeprefix("base_model.model."): tensor.float()
        for name, tensor in load_peft_weights(str(folder), device="cpu").items()
        if not name.endswith(peft.BASES_OWN)
    }
    model.load_state_dict({empty.pop(name): tensor for name, tensor in stored.items()}, strict=False, assign=True)
    if empty:
        raise ColdpressError(f"adapter '{folder}' has no tensor for '{min(empty)}', which its configuration names")
    model.eval()


def _adding(layer: LowRank) -> Any:
    """A hook that adds a low-rank product to what a linear layer gives."""
    import torch

    a, b = (torch.from_numpy(factor) for factor in layer.factors())
    return lambda _module, inputs, output: output + inputs[0] @ a @ b
