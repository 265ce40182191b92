"""Reading and writing parts of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


def write(folder: Path, tensors: dict[str, torch.Tensor], file: str = WEIGHTS) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})


def one_of(tensors: dict[str, torch.Tensor], random: Random, rank: int = 0) -> str:
    return random.choice(sorted(name for name, tensor in tensors.items() if tensor.ndim >= rank))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def set_config(folder: Path, **changes: Any) -> None:
    edit(folder / "config.json", lambda config: config.update(changes))
