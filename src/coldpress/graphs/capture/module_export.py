"""A module as an ONNX graph: torch.export for what Python computes, torch's older exporter for TorchScript.

What cannot be exported is told with the line of the user's code that stands in the way, and what to write there.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.capture.module import Call, Module, spelled
from coldpress.graphs.capture.torch_export import as_products, first_line, forget_places, name_axes

#: of the operators that torch's exporters write
_OPSET, _OF_TORCHSCRIPT = 21, 18
_INSIDE_BYTES = 256


def exported(module: Module, precision: str, scratch: Path) -> ir.Model:
    """The graph of a module, with its weights in memory.

    ``precision``: fp32 for the module as it is, else fp16, to which it is turned. ``scratch``: a folder to write to.
    ColdpressError, with the line of the user's code, for what cannot be exported.
    """
    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    module = _in_precision(module, precision)
    _require_open(module)
    is_script = isinstance(module.network, torch.jit.ScriptModule)
    model = _of_torchscript(module, scratch) if is_script else _of_program(module)
    _name_ends(model.graph, module)
    if not is_script:
        name_axes(model.graph, {name: module.axes.get(name, {}) for name in module.call.names})
    as_products(model.graph)
    _turn_weights(model.graph)
    forget_places(model)
    return model


def _in_precision(module: Module, precision: str) -> Module:
    import torch

    if precision == "fp32":
        return module
    if module.program is not None or isinstance(module.network, torch.jit.ScriptModule):
        raise ColdpressError(
            f"{module.name} was saved with its types, and is not made {precision} while it is exported",
            hint="export it as it is, with the pass onnx_float_to_float16 behind it; or load it in a script",
        )
    dtype = torch.float16
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in module.call.tensors.items()
    }
    return replace(module, network=module.network.to(dtype), call=module.call.with_tensors(tensors))


def _require_open(module: Module) -> None:
    """Refuse an axis that was declared open, but of which the module takes one size only."""
    for called, places in module.open_axes.items() if module.declared and module.program is None else ():
        name, axis = places[0]
        size = int(module.call.tensors[name].shape[axis])
        try:
            module.outputs(module.resized({called: size + 1}))
        except Exception as error:  # whatever a network raises for a size that it does not take
            where = _line_in(error, module)
            raise ColdpressError(
                f"the axis '{called}' of '{name}' was declared open, but {module.name} takes no other size than {size}"
                f"{where and ': ' + where} ({first_line(error)})",
                hint="take the axis out of dynamic_axes, or compute with x.shape[...] instead of a number",
                exit_code=WORK_FAILED,
            ) from error


# torch.export


def _of_program(module: Module) -> ir.Model:
    import torch

    program = module.program
    if program is None:
        call, shapes = _to_trace(module)
        args, named = call.arguments
        try:
            program = torch.export.export(module.network, args, named, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # whatever the code of a network raises when it is traced
            raise _not_traced(error, module) from error
    try:
        made: Any = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False)
    except Exception as error:  # as above
        raise _not_translated(error, program, module) from error
    model: ir.Model = made.model
    return model


def _to_trace(module: Module) -> tuple[Call, Any]:
    """An example to trace with, and what is open in it, as torch.export wants that told.

    Every open axis has a size of its own, and at least two: torch.export takes one for a constant, and equal sizes for
    the same.
    """
    import torch

    sizes: dict[str, int] = {}
    taken = {
        int(size)
        for name, tensor in module.call.tensors.items()
        for axis, size in enumerate(tensor.shape)
        if axis not in module.axes.get(name, {})
    }
    for called, places in module.open_axes.items():
        name, axis = places[0]
        now = max(int(module.call.tensors[name].shape[axis]), 2)
        sizes[called] = next((n for n in (now, now + 1, now + 2) if n not in {*taken, *sizes.values()}), now)
    changed = any(size != module.call.tensors[n].shape[a] for c, size in sizes.items() for n, a in module.open_axes[c])
    call = module.resized(sizes) if changed else module.call
    if changed and not module.declared and not _runs(module, call):
        call = module.call
    how = torch.export.Dim.DYNAMIC if module.declared else torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(module.axes.get(name, {}), how) for name in call.names}
    named = iter(call.names)
    told = [shapes[next(named)] if isinstance(one, torch.Tensor) else None for one in call.leaves]
    args, keywords = Call(told, call.structure, call.names).arguments
    return call, dict(inspect.signature(module.network.forward).bind(*args, **keywords).arguments)


def _runs(module: Module, call: Call) -> bool:
    try:
        module.outputs(call)
    except Exception:
        return False
    return True


# What stands in the way


#: part of what torch says -> what it means, and what to do
_REASONS = (
    (
        r"data-dependent|GuardOnDataDependent",
        "what is computed depends on the values of a tensor",
        "write it without a branch: torch.where for values, torch.cond for whole computations, so that one graph serves"
        " all inputs",
    ),
    (
        r"[Cc]onstraints violated|specializ|not all values of|is not equal to|mark_dynamic|Conflicts identified",
        "an axis that was declared open has one size only there",
        "take the axis out of dynamic_axes, or compute with x.shape[...] instead of a number",
    ),
    (
        r"numpy|\.data_ptr|FakeTensor|fake tensor",
        "it leaves torch, where nothing can be traced",
        "compute it with torch, or outside forward()",
    ),
    (
        r"[Uu]nsupported|not supported|Unknown pytree|call_function",
        "torch.export does not know it",
        "write it with operations of torch on tensors, and return tensors, tuples or mappings of them",
    ),
)
_GENERAL = "change that line; or export the module yourself and give its ONNX file"


def _not_traced(error: Exception, module: Module) -> ColdpressError:
    said = " ".join(_messages(error))
    meaning, hint = next(((why, do) for pattern, why, do in _REASONS if re.search(pattern, said)), ("", _GENERAL))
    where = _line_in(error, module)
    return ColdpressError(
        f"torch.export cannot trace {module.name}{where and ': ' + where}{meaning and ': ' + meaning}"
        f" ({first_line(error)})",
        hint=hint,
        exit_code=WORK_FAILED,
    )


def _not_translated(error: Exception, program: Any, module: Module) -> ColdpressError:
    said = " ".join(_messages(error))
    found = next((one for pattern in _OPERATORS if (one := re.search(pattern, said))), None)
    operator = found.group(1) if found else ""
    lines = [
        node.meta.get("stack_trace") or ""
        for node in program.graph.nodes
        if operator and _plain(str(getattr(node.target, "name", lambda: "")())).startswith(_plain(operator))
    ]
    where = next((line for trace in lines if (line := _line_of(trace, module))), "")
    what = f"{operator} has no counterpart in ONNX" if operator else first_line(error)
    return ColdpressError(
        f"{module.name} was traced, but cannot be written as ONNX{where and ': ' + where}: {what}",
        hint="compute the same with other operations of torch",
        exit_code=WORK_FAILED,
    )


def _plain(operator: str) -> str:
    """The name of an operator as programs have it before it is taken apart."""
    return operator.replace("::", ".").replace("._", ".")


#: how torch names an operator that it cannot write
_OPERATORS = (r"OpOverload\(op='([\w.]+)'", r"'(aten\.[\w.]+)'", r"No ONNX function found for ([\w.:]+)")


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__


def _line_in(error: BaseException, module: Module) -> str:
    """The line of the user's code that an error came from: file, number and text; "" where there is none."""
    current: BaseException | None = error
    while current is not None:
        for frame in reversed(traceback.extract_tb(current.__traceback__)):
            if _is_own(frame.filename, module):
                return f'{frame.filename}, line {frame.lineno}, in {frame.name}: "{frame.line}"'
        current = current.__cause__ or current.__context__
    return _line_of(str(error), module)


def _line_of(text: str, module: Module) -> str:
    """The last line of the user's code that a traceback in words names."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.*)', text)
    own = [one for one in found if _is_own(one[0], module)]
    return '{}, line {}, in {}: "{}"'.format(*own[-1]) if own else ""


def _is_own(file: str, module: Module) -> bool:
    path = Path(file)
    return "site-packages" not in path.parts and any(path.is_relative_to(folder) for folder in module.files)


# TorchScript


def _of_torchscript(module: Module, scratch: Path) -> ir.Model:
    import torch

    from coldpress.models.onnx_graphs import load_graph

    file = scratch / "torchscript.onnx"
    args, _ = module.call.arguments
    count = len(module.outputs(module.call))
    names = module.output_names if len(module.output_names) == count else tuple(f"output_{n}" for n in range(count))
    axes = {name: dict(axes) for name, axes in module.axes.items() if axes}
    for name in names if axes else ():
        axes[name] = {}
    try:
        torch.onnx.export(
            module.network,
            args,
            str(file),
            dynamo=False,
            opset_version=_OF_TORCHSCRIPT,
            input_names=list(module.call.names),
            output_names=list(names),
            dynamic_axes={name: known for name, known in axes.items() if known},
        )
    except Exception as error:  # whatever this exporter meets
        raise ColdpressError(
            f"torch cannot write {module.name}, TorchScript, as ONNX: {first_line(error)}",
            hint="load the module itself in a script with _model_loader, which is exported by torch.export",
            exit_code=WORK_FAILED,
        ) from error
    return load_graph(file)


# The graph itself


def _name_ends(graph: ir.Graph, module: Module) -> None:
    """Call inputs as the module's call does, outputs as was said, or as the module does."""
    for value, name in zip(graph.inputs, module.call.names, strict=True):
        value.name = name
    _part_outputs(graph)
    for value, name in zip(graph.outputs, _output_names(module, len(graph.outputs)), strict=True):
        value.name = f"{name}_output" if name in module.call.names else name


def _part_outputs(graph: ir.Graph) -> None:
    """Give each output a value of its own, which is no input and no weight."""
    met: list[ir.Value] = []
    for place, value in enumerate(graph.outputs):
        if value.producer() is None or any(value is one for one in met):
            same = ir.node("Identity", [value], name=f"output_{place}/Identity")
            same.outputs[0].type, same.outputs[0].shape = value.type, value.shape
            graph.append(same)
            graph.outputs[place] = same.outputs[0]
        met.append(value)


def _output_names(module: Module, count: int) -> list[str]:
    import torch
    import torch.utils._pytree as pytree

    if len(module.output_names) == count:
        return list(module.output_names)
    if module.output_names:
        raise ColdpressError(
            f"io_config names {len(module.output_names)} outputs, but the module gives {count}",
            hint="name each of them in output_names, or leave it out",
        )
    args, named = module.call.arguments
    with torch.no_grad():
        given = module.network(*args, **named)
    if isinstance(given, torch.Tensor):
        return ["output"]
    paths, _ = pytree.tree_flatten_with_path(given)
    return [spelled(path, "output") for path, one in paths if isinstance(one, torch.Tensor)]


def _turn_weights(graph: ir.Graph) -> None:
    """Write turned weights as weights, which are turned when they are written, and let none be in memory twice."""
    for node in [node for node in graph if node.op_type == "Transpose"]:
        value = node.inputs[0]
        if value is None or value.name not in graph.initializers or len(value.uses()) > 1 or value.const_value is None:
            continue
        perm, tensor = list(node.attributes.get_ints("perm", [])), value.const_value
        shape = ir.Shape([tensor.shape[axis] for axis in perm])
        turned = node.outputs[0]
        ir.convenience.replace_all_uses_with(turned, value)
        graph.remove(node, safe=True)
        value.shape = shape
        value.const_value = ir.LazyTensor(
            lambda tensor=tensor, perm=perm: ir.Tensor(tensor.numpy().transpose(perm)),
            dtype=tensor.dtype,
            shape=shape,
            name=value.name,
        )
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _INSIDE_BYTES and not isinstance(tensor, ir.LazyTensor):
            value.const_value = ir.LazyTensor(
                lambda tensor=tensor: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape), name=value.name
            )
