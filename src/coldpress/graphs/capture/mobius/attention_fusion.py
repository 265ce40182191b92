"""The one place that knows private names of mobius 0.1, whose version pyproject.toml caps for that reason.

mobius fuses attention into ``GroupQueryAttention`` by rules that are no part of its interface; they are replaced by
rules that keep what a graph computes.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

#: operators that a mask is built of when it only says: not the future, not the padding, not beyond a window
_MASK_OPS = frozenset(
    [
        "And",
        "Cast",
        "Concat",
        "Constant",
        "CumSum",
        "Expand",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "Shape",
        "Slice",
        "Sub",
        "Unsqueeze",
        "Where",
    ]
)


def use_exact_fusion() -> None:
    """Let `mobius.build` fuse by `_exact_attention`."""
    import mobius._optimizations

    mobius._optimizations.group_query_attention_rules = _exact_attention


def _exact_attention() -> list[Any]:
    """mobius' fusion into ``GroupQueryAttention``, where that is the same function.

    mobius 0.1 drops the mask (a sliding window, T5's relative positions) and gives all layers the rotary cache of the
    first (Gemma 3 has two). Here a window becomes ``local_window_size``, each layer keeps its cache, and an attention
    whose mask says more stays as it is.
    """
    from mobius.rewrite_rules import _group_query_attention as fusion

    class Exact:
        def check(self, context: Any, *, attn_out: Any, attention_bias: Any, **values: Any) -> Any:
            result = super().check(context, attn_out=attn_out, attention_bias=attention_bias, **values)  # type: ignore[misc]
            if result and _window(attn_out.producer(), attention_bias) is None:
                return result.fail("the mask says more than a window")
            return result

        def rewrite(self, op: Any, *, attn_out: Any, attention_bias: Any, **values: Any) -> Any:
            self._cos_cache = self._sin_cache = None
            outputs = super().rewrite(op, attn_out=attn_out, attention_bias=attention_bias, **values)  # type: ignore[misc]
            window = _window(attn_out.producer(), attention_bias)
            outputs[0].producer().attributes.add(ir.AttrInt64("local_window_size", window))
            return outputs

    rules = (fusion.RotaryAttentionToGQA, fusion.AttentionToGQA)
    classes: list[Any] = [type(f"Exact{rule.__name__}", (Exact, rule), {}) for rule in rules]
    return [rule.rule() for rule in classes]


def _window(attention: Any, mask: Any) -> int | None:
    """How far back a causal mask lets a position see, -1 for all the way; None for a mask that says anything else."""
    windows, pending, seen = [], [mask], set()
    causal = attention.attributes.get_int("is_causal", 0) == 1
    while pending:
        value = pending.pop()
        if value is None or value in seen or value.name == "attention_mask" or ir.convenience.get_const_tensor(value):
            continue
        seen.add(value)
        node = value.producer()
        if node is None or node.op_type not in _MASK_OPS:
            return None
        causal = causal or node.op_type == "GreaterOrEqual"
        if node.op_type == "Less":
            limit = ir.convenience.get_const_tensor(node.inputs[1])
            if limit is None:
                return None
            windows.append(int(limit.numpy().item()))
        pending.extend(node.inputs if node.op_type != "Shape" else ())
    return min(windows, default=-1) if causal else None
