"""Capture by torch.export: the network of transformers itself, traced with parameters that take no memory.

A network is one graph, or an encoder and a decoder (``components``). What two examples of the task differ in is open in
the graph: the number of samples, the length of texts. Parameters, and buffers that the checkpoint holds, become named,
empty weights; what the network computes when it is made, such as positions, stays a constant of the graph.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.accounting import is_excused, listed
from coldpress.graphs.capture.captured import Captured, Request
from coldpress.models.checkpoint import Span
from coldpress.models.packed.spans import tensors_to_press
from coldpress.networks.empty import network_of, renaming, tied_names
from coldpress.parts.task import task_of_settings

if TYPE_CHECKING:
    from coldpress.graphs.capture.components import Component

_OPSET = 21
#: what the open axes of inputs, counted from the last, are called: those of tokens, and of keys and values of tokens
#: before
_OPEN_AXES = {
    **{(name, -1): "sequence" for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids")},
    **{(name, -2): "choices" for name in ("input_ids", "attention_mask", "token_type_ids")},
    ("input_values", -1): "samples",
    ("encoder_attention_mask", -1): "encoder_sequence",
    ("encoder", -2): "encoder_sequence",
    ("decoder", -2): "past_sequence",
}

Feed = Mapping[str, np.ndarray]


def capture(request: Request) -> Captured:
    """Trace the network of a model; to be called in a worker process, which it fills with torch."""
    hf_config = json.loads((request.folder / "config.json").read_text(encoding="utf-8"))
    network = network_of(request.folder, request.dtype, request.trust_remote_code)
    task = task_of_settings(hf_config)
    assert task is not None
    taken = _parameters_of_forward(network)
    first, second = islice(task.examples(request.folder, taken, (), request.trust_remote_code), 2)
    from coldpress.graphs.capture.components import components_of

    models = {one.name: _traced(one, request) for one in components_of(network, first, second)}
    tensors, remarks = tensors_to_press(request.folder)
    sources, left = _sources(network, [model.graph for model in models.values()], tensors)
    for model in models.values():
        _simplify(model)
    if left:
        remarks.append(f"The network of transformers has no place for {listed(left)}, which are left out.")
    return Captured(models, sources, network.config, hf_config, remarks)


def _parameters_of_forward(network: Any) -> list[str]:
    import inspect

    return list(inspect.signature(network.forward).parameters)


def _traced(component: Component, request: Request) -> ir.Model:
    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = _axes(component.first, component.second)
    given = {name: _tensor(array, request.dtype) for name, array in component.first.items()}
    shapes = {name: dict.fromkeys(open_axes, torch.export.Dim.AUTO) for name, open_axes in names.items()}
    try:
        program = torch.export.export(component.network, (given,), dynamic_shapes=(shapes,), strict=False)
        exported: Any = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=_OPSET, verbose=False)
    except Exception as error:  # whatever the code of a network raises when it is traced
        raise ColdpressError(
            f"torch.export cannot trace {component.title}: {first_line(error)}",
            hint="its forward may depend on the values of its inputs; the line is in the message above",
            exit_code=WORK_FAILED,
        ) from error
    model: ir.Model = exported.model
    for value, name in zip(model.graph.inputs, given, strict=True):
        value.name = name
    for name, value in list(model.graph.initializers.items()):
        value.name = name.removeprefix("network.")
    _name_outputs(model.graph, program)
    name_axes(model.graph, names)
    return model


def _axes(first: Feed, second: Feed) -> dict[str, dict[int, str]]:
    """The open axes of each input and their names: those in which the two examples differ.

    Axes that differ alike are one and have the same name.
    """
    found: dict[str, dict[int, str]] = {}
    names: dict[tuple[int, int], str] = {}
    for name, array in first.items():
        found[name] = {}
        for axis, sizes in enumerate(zip(array.shape, second[name].shape, strict=True)):
            if sizes[0] != sizes[1]:
                kind = name.split(".")[-2] if "." in name else name
                own = "batch" if axis == 0 else _OPEN_AXES.get((kind, axis - array.ndim), f"{name}_{axis}")
                if sizes not in names:
                    names[sizes] = f"{name}_{own}" if own in names.values() else own
                found[name][axis] = names[sizes]
    return found


def _tensor(array: np.ndarray, dtype: str) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def _name_outputs(graph: ir.Graph, program: Any) -> None:
    """Call outputs as the network calls them; an output that is several tensors has their numbers behind its name."""
    import torch

    outputs: dict[str, Any] = torch.utils._pytree.tree_unflatten(list(graph.outputs), program.call_spec.out_spec)
    for name, value in outputs.items():
        leaves = torch.utils._pytree.tree_leaves(value)
        for number, leaf in enumerate(leaves):
            leaf.name = name if len(leaves) == 1 else f"{name}.{number}"


def name_axes(graph: ir.Graph, names: Mapping[str, Mapping[int, str]]) -> None:
    """Call the open axes of inputs, and of outputs that have the same, by their names."""
    known: dict[str, str] = {}
    for value in graph.inputs:
        for axis, name in names[str(value.name)].items():
            if value.shape is not None and not isinstance(value.shape[axis], int):
                known[str(value.shape[axis])] = name
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else known.get(str(size), str(size)) for size in value.shape]
            value.shape = ir.Shape(sizes)


def _sources(
    network: Any, graphs: Sequence[ir.Graph], tensors: Mapping[str, Span]
) -> tuple[dict[str, Span], list[str]]:
    """The checkpoint's tensor for each weight, which is emptied for it; and tensors that the network has no place for.

    ColdpressError for a tensor that transformers changes on its way into the network.
    """
    rename, tied = renaming(network), tied_names(network)
    places, spans, left = set(network.state_dict()), {}, []
    for stored, span in tensors.items():
        name, is_converted = rename(stored)
        if is_converted:
            raise ColdpressError(
                f"transformers makes '{name}' out of several tensors, '{stored}' among them, which cannot be streamed"
            )
        if name in places:
            spans[name] = span
        elif not is_excused(stored, tensors):
            left.append(stored)
    for one, other in tied.items():
        if one in spans:
            spans.setdefault(other, spans[one])
        elif other in spans:
            spans[one] = spans[other]
    parameters = dict(network.named_parameters())
    for name, value in (item for graph in graphs for item in graph.initializers.items()):
        if name in places and name in spans:
            value.const_value = None
        elif name in parameters:
            raise ColdpressError(
                f"the checkpoint has no tensor for '{name}'", hint="is config.json that of these weights?"
            )
    return spans, left


def _simplify(model: ir.Model) -> None:
    """Fold what is constant, now that weights have no values to fold; write linear layers as `linears` finds them."""
    from onnxscript import optimizer

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of each initializer without a value
    optimizer.optimize(model)
    graph = model.graph
    as_products(graph)
    transposed: dict[str, ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Transpose"]:
        name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        if name in graph.initializers:
            first = transposed.setdefault(f"{name} {node.attributes.get_ints('perm', [])}", node.outputs[0])
            if first is not node.outputs[0]:
                ir.convenience.replace_all_uses_with(node.outputs[0], first)
                graph.remove(node, safe=True)
    forget_places(model)


def forget_places(model: ir.Model) -> None:
    """Forget which file and line of whose machine a graph was traced from."""
    graph = model.graph
    for part in (model, graph, *graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        part.metadata_props.clear()


def as_products(graph: ir.Graph) -> None:
    """Write linear layers as products, as quantizers look for these."""
    for node in [node for node in graph if node.op_type == "Gemm"]:
        _as_product(graph, node)


def _as_product(graph: ir.Graph, gemm: ir.Node) -> None:
    """Write a linear layer of rows, ``Gemm`` with its weight transposed, as transpose, product and sum."""
    attributes = gemm.attributes
    is_plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
    if not is_plain or attributes.get_int("transA", 0) or not attributes.get_int("transB", 0):
        return
    rows, weight, *bias = gemm.inputs
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{gemm.name}/Transpose")
    product = ir.node("MatMul", [rows, turned.outputs[0]], name=f"{gemm.name}/MatMul")
    nodes = [turned, product]
    if bias and bias[0] is not None:
        nodes.append(ir.node("Add", [product.outputs[0], bias[0]], name=f"{gemm.name}/Add"))
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = node.name, gemm.outputs[0].type
    graph.insert_before(gemm, nodes)
    last, old = nodes[-1].outputs[0], gemm.outputs[0]
    last.shape, name = old.shape, old.name
    ir.convenience.replace_all_uses_with(old, last, replace_graph_outputs=True)
    graph.remove(gemm, safe=True)
    last.name = name


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
