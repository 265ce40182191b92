"""Write attention over packed sequences (``custom::PackedAttention``) as a Loop that does one sequence at a time.

Vision towers attend within each picture, or each window of one, and pack them one behind the other. A script that
exports such a tower marks its attention by that operator: ``query``, ``key``, ``value`` ``[batch, heads, length,
size]`` and ``lengths``, where each sequence begins and the last one ends, give ``[batch, length, heads, size]``.
ONNX Runtime's MultiHeadAttention does each sequence, so no mask of all positions among themselves is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.queries import CONTRIB
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, OPERATOR = "custom", "PackedAttention"
_FUNCTION = f"""
<opset_import: ["": OPSET, "{CONTRIB}": 1], domain: "{DOMAIN}">
{OPERATOR} <scale, num_heads> (query, key, value, lengths) => (result)
{{
    axis = Constant <value_ints = [0]> ()
    places = Constant <value_ints = [2]> ()
    joined = Constant <value_ints = [0, 0, -1]> ()
    one = Constant <value_ints = [1]> ()
    first = Constant <value_ints = [0]> ()
    true = Constant <value = bool {{1}}> ()
    ends = Cast <to = 7> (lengths)
    count = Size (ends)
    minus = Constant <value_int = -1> ()
    sequences = Add (count, minus)
    nothing = SequenceEmpty ()
    parts = Loop (sequences, true, nothing) <body = sequence (int64 number, bool go, before)
        => (on, after)
    {{
        on = Identity (go)
        here = Unsqueeze (number, axis)
        next = Add (here, one)
        start = Gather <axis = 0> (ends, here)
        stop = Gather <axis = 0> (ends, next)
        query_here = Slice (query, start, stop, places)
        key_here = Slice (key, start, stop, places)
        value_here = Slice (value, start, stop, places)
        query_turned = Transpose <perm = [0, 2, 1, 3]> (query_here)
        key_turned = Transpose <perm = [0, 2, 1, 3]> (key_here)
        value_turned = Transpose <perm = [0, 2, 1, 3]> (value_here)
        query_flat = Reshape (query_turned, joined)
        key_flat = Reshape (key_turned, joined)
        value_flat = Reshape (value_turned, joined)
        found = {CONTRIB}.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>
            (query_flat, key_flat, value_flat)
        after = SequenceInsert (before, found)
    }}>
    flat = ConcatFromSequence <axis = 1> (parts)
    turned = Transpose <perm = [0, 2, 1, 3]> (query)
    shape = Shape (turned)
    result = Reshape (flat, shape)
}}
"""


@dataclass(frozen=True)
class PackedAttentionToLoopMha(Surgery):
    """Write attention over packed sequences as a Loop that does one sequence at a time."""

    closeness = None  # nothing runs the operator that was there

    def operate(self, model: ir.Model) -> int:
        import onnx
        import onnx_ir as ir
        from onnx_ir.passes.common import InlinePass

        found = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]
        if not found:
            return 0
        text = _FUNCTION.replace("OPSET", str(model.opset_imports[""]))
        function = ir.from_proto(onnx.parser.parse_function(text))
        model.functions[function.identifier()] = function
        model.opset_imports.setdefault(CONTRIB, 1)
        InlinePass(lambda one: one.domain == DOMAIN)(model)
        model.opset_imports.pop(DOMAIN, None)
        return len(found)
