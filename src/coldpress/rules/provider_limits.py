"""What an execution provider cannot run, and leaves to the processor: copies there and back, and slower kernels.

Of a provider that the installed ONNX Runtime has, its list of kernels says so. Of others the limits are those of their
documentation (https://onnxruntime.ai/docs/execution-providers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from coldpress.graphs.queries import CONTRIB, all_nodes
from coldpress.parts import Finding, Rule, place_of
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

_CONTROL_FLOW = ("If", "Loop", "Scan")
_OPEN, _BRANCHES, _OWN, _TEXT = "open sizes", "control flow", "operators of com.microsoft", "texts"
#: provider, by its short name -> what it leaves to the processor
_LEFT = {
    "cuda": (_TEXT,),
    "dml": (_BRANCHES, _TEXT),
    "webgpu": (_BRANCHES, _TEXT),
    "tensorrt": (_OWN, _TEXT),
    "trt-rtx": (_TEXT,),
    "migraphx": (_BRANCHES, _TEXT),
    "openvino": (_TEXT,),
    "qnn": (_OPEN, _BRANCHES, _OWN, _TEXT),
    "vitisai": (_OPEN, _BRANCHES, _OWN, _TEXT),
}
_FIXES = {
    _OPEN: "fix the sizes: the pass dynamic_to_fixed_shape",
    _BRANCHES: "export the model without branches, or one graph for each",
    _OWN: "write it in operators of ONNX, such as by the pass mat_mul_n_bits_to_qdq",
    _TEXT: "do what reads texts outside of the model",
}
#: providers that compile whole graphs: what they leave out, they leave out as a whole
_COMPILES = ("qnn", "vitisai")


@dataclass(frozen=True)
class ProviderLimits(Rule):
    """Nodes that the target's provider has no kernel for."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        if target.provider in _kernels():
            yield from _without_kernel(graph, target)
        for limit in _LEFT.get(target.short_name, ()):
            places = _PLACES[limit](graph)
            if places:
                is_whole = limit == _OPEN and target.short_name in _COMPILES
                yield Finding(
                    f"{limit}: {target.provider} leaves {'all' if is_whole else 'it'} to the processor",
                    _FIXES[limit],
                    place_of(places),
                    severity="error" if is_whole else "warning",
                )


def _without_kernel(model: ir.Model, target: Target) -> Iterator[Finding]:
    """Operators that neither have a kernel nor are written in others."""
    known = _kernels()[target.provider] | {("", "Constant")}  # which is no work at run time
    functions = {(one.domain, one.name) for one in model.functions.values()}
    missing: dict[tuple[str, str], list[ir.Node]] = {}
    for node in all_nodes(model):
        kind = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if kind not in known and kind not in functions and not _is_written_in_others(*kind):
            missing.setdefault(kind, []).append(node)
    is_processor = target.short_name == "cpu"
    for (domain, op_type), places in missing.items():
        yield Finding(
            f"{target.provider} has no {f'{domain}.' if domain else ''}{op_type}"
            + ("" if is_processor else ", so the processor does it"),
            "export the model in operators that it has, or register the library of custom operators",
            place_of(places),
            severity="error" if is_processor else "warning",
        )


@cache
def _kernels() -> Mapping[str, frozenset[tuple[str, str]]]:
    """Provider -> domains and names of its operators; of the providers in the installed ONNX Runtime."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, set[tuple[str, str]]] = {}
    for kernel in state.get_all_opkernel_def() if hasattr(state, "get_all_opkernel_def") else ():
        found.setdefault(kernel.provider, set()).add((kernel.domain, kernel.op_name))
    return {provider: frozenset(kinds) for provider, kinds in found.items()}


def _is_written_in_others(domain: str, op_type: str) -> bool:
    """Whether ONNX, or ONNX Runtime, says how an operator is computed by others."""
    import onnx

    if domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(op_type, domain=domain)
    except onnx.defs.SchemaError:
        return False
    return any(getattr(schema, name, False) for name in ("has_function", "has_context_dependent_function"))


def _open_inputs(model: ir.Model) -> list[str]:
    inputs = [value for value in model.graph.inputs if value.shape is not None and not value.is_initializer()]
    return [str(value.name) for value in inputs if not all(isinstance(size, int) for size in value.shape or ())]


def _branches(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph.all_nodes() if node.op_type in _CONTROL_FLOW]


def _own(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph.all_nodes() if node.domain == CONTRIB]


def _texts(model: ir.Model) -> list[str]:
    nodes = model.graph.all_nodes()
    return [str(node.name) for node in nodes if any(_is_text(value) for value in (*node.inputs, *node.outputs))]


def _is_text(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name == "STRING"


_PLACES = {_OPEN: _open_inputs, _BRANCHES: _branches, _OWN: _own, _TEXT: _texts}
