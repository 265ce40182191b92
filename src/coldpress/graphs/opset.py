"""Declaring the oldest opset that a graph really needs, so that older runtimes load it.

mobius writes opset 24, which ONNX Runtime 1.23 refuses. Most operators only took more types since opset 21; a
decoder needs nothing newer, once its first norm is written with the contrib operator that fused norms use anyway.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import defs

OLDEST = 21
_IR_VERSION = 10  # the one of opset 21; runtimes refuse models with a newer one than theirs


def lower_opset(model: ir.Model) -> None:
    """Rewrite what can be said in older terms, and declare the oldest opset that still has all operators.

    Graphs with bfloat16 values keep their opset: older operators often do not take them.
    """
    if any(value.dtype == ir.DataType.BFLOAT16 for value in (*model.graph.inputs, *model.graph.outputs)):
        return
    for node in model.graph:
        if node.op_type == "RMSNormalization" and node.domain in ("", "ai.onnx"):
            node.op_type = "SimplifiedLayerNormalization"
    for identifier in [identifier for identifier in model.functions if identifier[0] == "com.microsoft"]:
        del model.functions[identifier]  # bodies of operators that the runtime has kernels for
    newest = model.opset_imports[""]
    oldest = next(version for version in range(OLDEST, newest + 1) if version == newest or _has_all(model, version))
    model.opset_imports[""] = oldest
    if oldest < 23:
        model.ir_version = _IR_VERSION


def _has_all(model: ir.Model, version: int) -> bool:
    nodes = [*model.graph.all_nodes(), *(node for function in model.functions.values() for node in function)]
    return all(_has(node, version) for node in nodes if node.domain in ("", "ai.onnx"))


def _has(node: ir.Node, version: int) -> bool:
    """Whether this opset has the operator with these attributes and as many inputs and outputs."""
    if node.op_type == "SimplifiedLayerNormalization":
        return True
    try:
        schema = defs.get_schema(node.op_type, version)
    except defs.SchemaError:
        return False
    fits = len(node.inputs) <= schema.max_input and len(node.outputs) <= schema.max_output
    return fits and all(name in schema.attributes for name in node.attributes)
