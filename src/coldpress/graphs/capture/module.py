"""PyTorch modules that are no folder of a hub: made by a script of the user's, a saved program of torch.export, or
TorchScript.

A script has the function ``_model_loader(model_path)``, and beside it either ``_dummy_inputs(model)``, what the module
is called with once, or ``_io_config``, a mapping (or a function that gives one) with the names, shapes and types of
inputs, names of outputs, and ``dynamic_axes``. What is not said is found by calling the module.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.models.model import Model
from coldpress.models.torch_file import kind_of
from coldpress.parts import option, schema
from coldpress.parts.user_script import UserFunction, marked, names_in, require_function

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

_IO_KEYS = (
    *("input_names", "input_shapes", "input_types", "output_names", "output_shapes", "output_types"),
    *("dynamic_axes", "dynamic_shapes", "string_to_int_dim_params"),
)
#: names of types in an io_config that torch calls otherwise
_TYPES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
_SEED = 0


@dataclass(frozen=True)
class ModuleOptions:
    """How a script makes a module, and what that takes."""

    model_path: str | None = option("what the script's loader is called with: a file, a folder or any text", None)
    script_dir: str | None = option("folder that the script imports from, beside its own", None)
    loader: str = option("function of the script that gives the module, from model_path", "_model_loader")
    dummy_inputs: str = option("function of the script that gives what the module is called with", "_dummy_inputs")
    io_config: str | dict[str, Any] = option(
        "names, shapes and types of inputs, output_names, dynamic_axes; or the name that the script has for that",
        "_io_config",
    )

    reads: ClassVar[tuple[str, ...]] = ("model_path", "script_dir")

    def require_in(self, script: Path) -> None:
        """Refuse, without running it, a script that does not say how to make a module, or what that takes."""
        loads_itself = self.model_path is not None and Path(self.model_path).suffix in (".pt2", ".pt", ".ts")
        if not (loads_itself and self.loader == type(self).loader):
            require_function(str(script), self.loader)
        if isinstance(self.io_config, Mapping):
            for key in self.io_config:
                if key not in _IO_KEYS:
                    raise ColdpressError(f"io_config has no '{key}'", hint=did_you_mean(str(key), _IO_KEYS))
        elif self.io_config != type(self).io_config:
            require_function(str(script), self.io_config)
        if self.dummy_inputs != type(self).dummy_inputs:
            require_function(str(script), self.dummy_inputs)


def loading_of(part: Any) -> dict[str, Any]:
    """How a pass or a metric loads its module, as plain data."""
    options: dict[str, Any] = schema.plain({one.name: getattr(part, one.name) for one in fields(ModuleOptions)})
    return options


@dataclass
class Call:
    """What a module is called with: tensors by name, and everything else as it is."""

    leaves: list[Any]
    structure: Any
    names: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        import torch

        return dict(zip(self.names, (one for one in self.leaves if isinstance(one, torch.Tensor)), strict=True))

    def with_tensors(self, tensors: Tensors) -> Call:
        import torch

        left = iter(self.names)
        leaves = [tensors[next(left)] if isinstance(one, torch.Tensor) else one for one in self.leaves]
        return Call(leaves, self.structure, self.names)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        import torch.utils._pytree as pytree

        args, named = pytree.tree_unflatten(self.leaves, self.structure)
        return args, named


@dataclass
class Module:
    """A module that is loaded. ``call``: an example of what it takes.

    ``axes``: open axes of its inputs and their names. ``declared``: whether somebody said which; else they were found.
    ``output_names``: as somebody said, else empty. ``program``: of torch.export, where it is one. ``files``: folders
    with the user's code.
    """

    network: Any
    call: Call
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    declared: bool = False
    output_names: tuple[str, ...] = ()
    program: Any = None
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return str(getattr(self.network, "original_name", type(self.network).__name__))

    @property
    def open_axes(self) -> dict[str, list[tuple[str, int]]]:
        """The places of each open axis by its name."""
        found: dict[str, list[tuple[str, int]]] = {}
        for name, axes in self.axes.items():
            for axis, called in axes.items():
                found.setdefault(called, []).append((name, axis))
        return found

    def outputs(self, call: Call) -> list[torch.Tensor]:
        """The tensors that the module gives, in their order."""
        import torch
        import torch.utils._pytree as pytree

        args, named = call.arguments
        with torch.no_grad():
            given = self.network(*args, **named)
        return [one for one in pytree.tree_leaves(given) if isinstance(one, torch.Tensor)]

    def resized(self, sizes: Mapping[str, int], seed: int = _SEED) -> Call:
        """The example with other sizes of open axes, by their names; values are drawn from those of the example."""
        import torch

        random = torch.Generator().manual_seed(seed)
        shapes = {name: list(tensor.shape) for name, tensor in self.call.tensors.items()}
        for called, places in self.open_axes.items():
            for name, axis in places:
                shapes[name][axis] = sizes.get(called, shapes[name][axis])
        return self.call.with_tensors(
            {name: _drawn(tensor, shapes[name], random) for name, tensor in self.call.tensors.items()}
        )


def _drawn(tensor: torch.Tensor, shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """Values of a tensor in another shape; of one that is the same everywhere, and a float, normal ones."""
    import torch

    flat = tensor.reshape(-1)
    if not flat.numel() or 0 in shape:
        return torch.zeros(tuple(shape), dtype=tensor.dtype)
    if tensor.is_floating_point() and flat.numel() > 1 and bool((flat == flat[0]).all()):
        return torch.randn(tuple(shape), generator=random).to(tensor.dtype)
    places = torch.randint(0, flat.numel(), (int(np.prod(shape)),), generator=random)
    return flat[places].reshape(tuple(shape))


def open_module(model: Model, options: ModuleOptions) -> Module:
    """The module of a model, in evaluation mode, with an example of what it takes. Runs the user's script.

    ColdpressError, marked as the script's, for what that raises, and for what it does not say.
    """
    import torch

    warnings.simplefilter("ignore")
    torch.manual_seed(_SEED)
    if options.script_dir is not None:
        sys.path.append(str(Path(options.script_dir).resolve()))
    if model.format == "script":
        module = _of_script(model.path, options)
    else:
        module = _of_file(model.path, model.format, _declared(options.io_config, None))
    if not module.axes and not module.declared and module.program is None:
        module.axes = _found_axes(module)
    return module


# What a script says


@dataclass(frozen=True)
class _Handle:
    """What Olive's scripts get in place of the model: its path, and the module itself."""

    model_path: str | None
    network: Any

    def load_model(self, *_: Any, **__: Any) -> Any:
        return self.network


def _of_script(script: Path, options: ModuleOptions) -> Module:
    network = _loaded(script, options)
    handle = _Handle(options.model_path, network)
    names = names_in(str(script))
    said = _declared(options.io_config, lambda name: _value(script, name, names, handle))
    folders = (script.resolve().parent, *([Path(options.script_dir).resolve()] if options.script_dir else []))
    if options.dummy_inputs in names:
        given = _called(script, options.dummy_inputs, handle)
        call = _call(given, network, said, f"{script}: {options.dummy_inputs}()")
    elif said.shapes:
        call = _call(_as_taken(said.example(), network), network, said, "io_config")
    else:
        raise ColdpressError(
            f"{script} does not say what the module takes",
            hint=f"give it a function {options.dummy_inputs}(model) with an example of the inputs, or an _io_config"
            " with input_names, input_shapes and input_types",
        )
    module = Module(network, call, said.axes_of(call), said.declares, said.outputs, files=folders)
    with marked(script, f"forward() of {module.name}"):
        outputs = module.outputs(call)
    if not outputs:
        raise ColdpressError(f"{script}: {module.name} gives no tensor", hint="return tensors, or a mapping of them")
    return module


def _as_taken(example: dict[str, Any], network: Any) -> Any:
    """Inputs by their names where forward() calls them so, else in their order."""
    import torch

    if isinstance(network, torch.jit.ScriptModule):
        return example
    parameters = inspect.signature(network.forward).parameters
    return example if example.keys() <= parameters.keys() else tuple(example.values())


def _loaded(script: Path, options: ModuleOptions) -> Any:
    import torch

    if options.loader not in names_in(str(script)) and options.model_path and kind_of(Path(options.model_path)):
        return _opened(Path(options.model_path), str(kind_of(Path(options.model_path))))[0]
    network = _called(script, options.loader, options.model_path)
    if isinstance(network, torch.export.ExportedProgram):
        return network.module()
    if isinstance(network, Mapping):
        raise ColdpressError(
            f"{script}: {options.loader}() gives {type(network).__name__}, such as torch.load gives of weights, not a"
            " module",
            hint="make the network and load the weights into it: model.load_state_dict(...); return model",
        )
    if not isinstance(network, torch.nn.Module):
        raise ColdpressError(
            f"{script}: {options.loader}() gives {type(network).__name__}, not a torch.nn.Module",
            hint="return the module itself",
        )
    return network.eval().cpu() if not isinstance(network, torch.jit.ScriptModule) else network.eval()


def _called(script: Path, name: str, argument: Any) -> Any:
    """What a function of the script gives for one argument, or for none where it takes none."""
    function = UserFunction(str(script), name)
    return function(argument) if function.takes(1) else function()


def _value(script: Path, name: str, names: Mapping[str, Any], handle: _Handle) -> Any:
    found = names.get(name)
    return _called(script, name, handle) if callable(found) else found


@dataclass(frozen=True)
class _Said:
    """What an io_config says."""

    inputs: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    types: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    axes: Any = None

    @property
    def declares(self) -> bool:
        return self.axes is not None

    def example(self) -> dict[str, Any]:
        """Made-up inputs: normal numbers, zeros and ones, by the types."""
        import torch

        random = torch.Generator().manual_seed(_SEED)
        types = self.types or ("float32",) * len(self.shapes)
        if not len(self.inputs) == len(self.shapes) == len(types):
            raise ColdpressError(
                f"io_config has {len(self.inputs)} input_names, {len(self.shapes)} input_shapes and"
                f" {len(types)} input_types",
                hint="say each of every input, in the same order",
            )
        made = {}
        for name, shape, kind in zip(self.inputs, self.shapes, types, strict=True):
            dtype = getattr(torch, _TYPES.get(kind, kind), None)
            if not isinstance(dtype, torch.dtype):
                raise ColdpressError(f"io_config: there is no type '{kind}'", hint="such as float32 or int64")
            whole = not dtype.is_floating_point
            made[name] = (
                torch.randint(0, 2, shape, generator=random).to(dtype)
                if whole
                else torch.randn(shape, generator=random).to(dtype)
            )
        return made

    def axes_of(self, call: Call) -> dict[str, dict[int, str]]:
        """The open axes by input; a list of axes gives them names. Those of outputs follow from these."""
        by_input = self.axes or {}
        if isinstance(by_input, Sequence):
            by_input = dict(zip(call.names, by_input, strict=False))
        found: dict[str, dict[int, str]] = {}
        for name, axes in by_input.items():
            if name in self.outputs:
                continue
            if name not in call.names:
                raise ColdpressError(
                    f"dynamic_axes names '{name}', which is no input", hint=did_you_mean(str(name), call.names)
                )
            listed = axes.items() if isinstance(axes, Mapping) else enumerate_axes(axes)
            rank, found[name] = call.tensors[name].dim(), {}
            for axis, called in ((int(axis), called) for axis, called in listed if called is not None):
                if not -rank <= axis < rank:
                    raise ColdpressError(f"dynamic_axes: '{name}' has {rank} axes, and none with the number {axis}")
                found[name][axis % rank] = _axis_name(called, name, axis % rank)
        return found


def enumerate_axes(axes: Any) -> list[tuple[int, Any]]:
    """Axes in a list: their numbers, or for each axis its name or None."""
    values = list(axes or ())
    if all(isinstance(one, int) for one in values):
        return [(one, "") for one in values]
    return list(enumerate(values))


def _axis_name(called: Any, name: str, axis: int) -> str:
    text = called if isinstance(called, str) else getattr(called, "__name__", "")
    return text or ("batch" if axis == 0 else f"{name}_{axis}")


def _declared(io_config: str | Mapping[str, Any], find: Callable[[str], Any] | None) -> _Said:
    if isinstance(io_config, Mapping):
        found: Any = io_config
    else:
        found = find(io_config) if find is not None else None
    if found is None:
        return _Said()
    if not isinstance(found, Mapping):
        raise ColdpressError(
            f"io_config is {type(found).__name__}, not a mapping", hint="such as {'input_names': ['x'], ...}"
        )
    for key in found:
        if key not in _IO_KEYS:
            raise ColdpressError(f"io_config has no '{key}'", hint=did_you_mean(str(key), _IO_KEYS))
    axes = found.get("dynamic_shapes") or found.get("dynamic_axes")
    return _Said(
        tuple(map(str, found.get("input_names") or ())),
        tuple(tuple(int(size) for size in shape) for shape in found.get("input_shapes") or ()),
        tuple(map(str, found.get("input_types") or ())),
        tuple(map(str, found.get("output_names") or ())),
        axes,
    )


# How it is called


def _call(given: Any, network: Any, said: _Said, where: str) -> Call:
    """An example of arguments as a call, its tensors named by the io_config, else by the parameters of forward()."""
    import torch
    import torch.utils._pytree as pytree

    args, named = ((), dict(given)) if isinstance(given, Mapping) else (tuple(_listed(given)), {})
    if not isinstance(network, torch.jit.ScriptModule):
        args, named = _by_parameter(args, named, network, where)
    elif named:
        args, named = tuple(named.values()), {}
    paths, structure = pytree.tree_flatten_with_path((args, named))
    leaves = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for _, one in paths]
    own = [
        spelled(path[1:], "input")
        for (path, _), one in zip(paths, leaves, strict=True)
        if isinstance(one, torch.Tensor)
    ]
    if not own:
        raise ColdpressError(f"{where} gives no tensor", hint="give a tensor, a tuple of them or a mapping of names")
    if said.inputs and len(said.inputs) != len(own):
        raise ColdpressError(
            f"io_config names {len(said.inputs)} inputs, but the module is called with {len(own)} tensors:"
            f" {', '.join(own)}",
            hint="name each of them in input_names, or leave it out",
        )
    return Call(leaves, structure, said.inputs or tuple(own))


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else (given,)


def _by_parameter(
    args: tuple[Any, ...], named: dict[str, Any], network: Any, where: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by the names of forward()'s parameters, in their order; those without one stay as they are."""
    parameters = inspect.signature(network.forward)
    try:
        bound = parameters.bind(*args, **named)
    except TypeError as error:
        raise ColdpressError(
            f"{where} does not fit forward{parameters} of {type(network).__name__}: {error}",
            hint="give a mapping of the parameters' names, or a tuple in their order",
        ) from error
    kinds = {one.kind for name, one in parameters.parameters.items() if name in bound.arguments}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
        return bound.args, bound.kwargs
    inner = next((n for n, one in parameters.parameters.items() if one.kind is inspect.Parameter.VAR_KEYWORD), "")
    further = bound.arguments.pop(inner, {})
    return (), {**bound.arguments, **further}


def spelled(path: Sequence[Any], kind: str) -> str:
    """A place in what a function takes or gives as a name: ``ids``, ``past.0.1``; ``input_0`` for a number."""
    first, *rest = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
    return ".".join([f"{kind}_{first}" if first.isdigit() else first, *rest])


# Which axes are open


def _found_axes(module: Module) -> dict[str, dict[int, str]]:
    """The axes that another size of is taken: that of samples, and that of tokens where there are whole numbers."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.call.tensors.items()}
    samples = [name for name, shape in shapes.items() if shape and shape[0] == _first(shapes.values(), 0)]
    axes: dict[str, dict[int, str]] = {}
    if _takes(module, {name: {0: "batch"} for name in samples}, gives_more=True):
        axes = {name: {0: "batch"} for name in samples}
    whole = [s for n, s in shapes.items() if not module.call.tensors[n].is_floating_point() and len(s) == 2]
    tokens = [name for name, shape in shapes.items() if len(shape) >= 2 and shape[1] == _first(whole, 1)]
    if whole and _takes(module, {name: {1: "sequence"} for name in tokens}):
        for name in tokens:
            axes.setdefault(name, {})[1] = "sequence"
    return axes


def _first(shapes: Any, axis: int) -> int | None:
    return next((shape[axis] for shape in shapes if len(shape) > axis), None)


def _takes(module: Module, axes: dict[str, dict[int, str]], gives_more: bool = False) -> bool:
    """Whether the module runs with one more, or one less, on these axes; and, if asked, gives as much more."""
    if not axes:
        return False
    tried = Module(module.network, module.call, axes)
    (called, places), *_ = tried.open_axes.items()
    size = module.call.tensors[places[0][0]].shape[places[0][1]]
    before = [tuple(one.shape) for one in module.outputs(module.call)]
    for other in (size + 1, size - 1):
        try:
            after = [tuple(one.shape) for one in tried.outputs(tried.resized({called: other}))] if other else before
        except Exception:
            continue
        if not gives_more or any(one[:1] == (size,) and two[:1] == (other,) for one, two in zip(before, after)):  # noqa: B905
            return True
    return False


# Files that hold a whole module


def _of_file(file: Path, kind: str, said: _Said) -> Module:
    network, program = _opened(file, kind)
    if program is not None:
        given = program.example_inputs
        if given is None:
            raise ColdpressError(
                f"{file} holds no example of its inputs", hint="save it again: torch.export.save keeps the example"
            )
        args, named = given
        call = _call_of_program(args, named, program)
        return Module(network, call, _axes_of_program(program, call), True, said.outputs, program)
    if not said.shapes:
        raise ColdpressError(
            f"{file} is TorchScript, which does not say what it takes",
            hint="say it in io_config: input_names, input_shapes, input_types; or in a script with _dummy_inputs:"
            f" --model_script SCRIPT -m {file}",
        )
    call = _call(said.example(), network, said, "io_config")
    module = Module(network, call, said.axes_of(call), said.declares, said.outputs)
    with marked(file, "forward()"):
        module.outputs(call)
    return module


def _opened(file: Path, kind: str) -> tuple[Any, Any]:
    """The module in a file, and its program if torch.export made it."""
    import torch

    try:
        if kind == "pt2":
            program = torch.export.load(file)
            return program.module(), program
        return torch.jit.load(str(file), map_location="cpu").eval(), None
    except Exception as error:
        raise ColdpressError(
            f"torch {torch.__version__} cannot read {file}: {str(error).strip().splitlines()[0][:300]}",
            hint="save it with this version, or from a script with _model_loader",
            exit_code=WORK_FAILED,
        ) from error


def _call_of_program(args: tuple[Any, ...], named: dict[str, Any], program: Any) -> Call:
    import torch
    import torch.utils._pytree as pytree

    leaves, structure = pytree.tree_flatten((args, named))
    names = tuple(str(name) for name in program.graph_signature.user_inputs if isinstance(name, str))
    count = sum(isinstance(one, torch.Tensor) for one in leaves)
    return Call(leaves, structure, names if len(names) == count else tuple(f"input_{n}" for n in range(count)))


def _axes_of_program(program: Any, call: Call) -> dict[str, dict[int, str]]:
    """The axes that a program was exported with open, by the names of its symbols."""
    shapes = {
        node.name: [(axis, str(size)) for axis, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)]
        for node in program.graph.nodes
        if node.op == "placeholder" and hasattr(node.meta.get("val"), "shape")
    }
    return {name: dict(shapes[name]) for name in call.names if shapes.get(name)}


def sizes_to_try(module: Module) -> Iterator[dict[str, int]]:
    """Other sizes of the open axes, all at once: one more, one less, twice as many, the least."""
    now = {
        called: int(module.call.tensors[places[0][0]].shape[places[0][1]])
        for called, places in module.open_axes.items()
    }
    if not now:
        return
    yield {called: size + 1 + place for place, (called, size) in enumerate(now.items())}
    yield {called: max(size - 1, 1) for called, size in now.items()}
    yield {called: 2 * size for called, size in now.items()}
    yield dict.fromkeys(now, 1)
