"""Random adapters, made by PEFT itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any


def make_adapter(model: Any, folder: Path, kind: str = "Lora", **settings: Any) -> Any:
    """Save a random adapter for a transformers model to ``folder``; gives PEFT's model with it, in evaluation mode.

    ``kind``: Lora, LoHa, LoKr. All its tensors are random, so that every one of them matters.
    """
    import peft
    import torch

    # PEFT puts its layers into the model it is given
    with_adapter = peft.get_peft_model(copy.deepcopy(model), getattr(peft, f"{kind}Config")(**settings)).eval()
    generator = torch.Generator().manual_seed(len(str(settings)))
    for name, parameter in with_adapter.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    with_adapter.save_pretrained(str(folder))
    return with_adapter
