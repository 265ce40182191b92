"""What a graph says of its LoRA slots: names, and which rows of which modules the outputs of each are.

`lora_slots` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METADATA = "coldpress.lora_slots"


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a module of the checkpoint."""

    module: str
    start: int
    stop: int


@dataclass(frozen=True)
class Slot:
    """``name``: the module, or what joined modules are called. ``pieces``: what its outputs are, in order."""

    name: str
    inputs: int
    pieces: tuple[Piece, ...]
    dtype: str = "float32"

    @property
    def a(self) -> str:
        return f"{self.name}.lora_A.weight"

    @property
    def b(self) -> str:
        return f"{self.name}.lora_B.weight"

    @property
    def outputs(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slot:
        return cls(**{**data, "pieces": tuple(Piece(**piece) for piece in data["pieces"])})


def read_slots(graph_file: Path) -> list[Slot]:
    """The slots that a pressed graph says it has."""
    import onnx

    model = onnx.load(str(graph_file), load_external_data=False)
    said = next((entry.value for entry in model.metadata_props if entry.key == METADATA), "[]")
    return [Slot.from_json(data) for data in json.loads(said)]
