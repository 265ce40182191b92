"""Let a node read zeros instead of what it reads: to see what an input does, or to switch off a branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.edits import add_constant, drop_unread
from coldpress.graphs.shapes import infer_shapes
from coldpress.parts import option
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir

_SHOWN = 200


@dataclass(frozen=True)
class ZeroOutInput(Surgery):
    """Let a node read zeros instead of one of its inputs."""

    closeness = None

    node_name: str = option("name of the node", "")
    input_idx: int = option("which of its inputs, from 0", 0)

    def check(self, model: ir.Model) -> None:
        node = _named(model, self.node_name)
        if node is None:
            names = [str(one.name) for one in model.graph][:_SHOWN]
            raise ColdpressError(f"there is no node '{self.node_name}'", hint=did_you_mean(self.node_name, names))
        if not 0 <= self.input_idx < len(node.inputs) or node.inputs[self.input_idx] is None:
            raise ColdpressError(f"input_idx {self.input_idx}: '{node.name}' has {len(node.inputs)} inputs, from 0 on")

    def operate(self, model: ir.Model) -> int:
        infer_shapes(model)
        node = _named(model, self.node_name)
        assert node is not None
        value = node.inputs[self.input_idx]
        if value.shape is None or value.dtype is None or not all(isinstance(size, int) for size in value.shape):
            raise ColdpressError(
                f"the shape of input {self.input_idx} of '{node.name}' is not known",
                hint="fix the open sizes first: dynamic_to_fixed_shape",
            )
        zeros = np.zeros([int(size) for size in value.shape], value.dtype.numpy())
        node.replace_input_with(self.input_idx, add_constant(model.graph, f"{node.name}/zeros", zeros, value.dtype))
        if (before := value.producer()) is not None:
            drop_unread(model.graph, [before])
        return 1


def _named(model: ir.Model, name: str) -> ir.Node | None:
    return next((node for node in model.graph if node.name == name), None)
