"""Every execution provider that can be a target has a graph."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from coldpress.graphs.capture.captured import Request
from coldpress.graphs.capture.exporters import capture
from coldpress.target import PROVIDERS

#: operators of ONNX Runtime alone that providers without operators of their own do not run
_FUSED = {"GroupQueryAttention", "MultiHeadAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits"}


@pytest.mark.parametrize(
    "provider", [name for _, name in PROVIDERS.values() if name not in ("cpu", "cuda", "dml", "webgpu")]
)
def test_it_has_a_graph_without_operators_that_it_lacks(provider, tiny_model, tmp_path):
    captured = capture("mobius", Request(tiny_model, provider, "float16", tmp_path))
    graph: ir.Graph = captured.components["model"].graph
    operators = {node.op_type for node in graph}
    assert {"input_ids", "attention_mask"} <= {value.name for value in graph.inputs}
    assert provider == "trt-rtx" or not operators & _FUSED
