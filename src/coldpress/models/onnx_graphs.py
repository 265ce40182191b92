"""The files of an ONNX model: its graphs, where each of their tensors lies, and what else belongs to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import ColdpressError, raised_as
from coldpress.models.external_data import aligned, check_external, files_beside, resolve_external
from coldpress.models.model import files_of, find_graphs, link_or_copy

if TYPE_CHECKING:
    import onnx

#: not carried over: the same weights in another format, and what is written anew about every result
_OTHER_WEIGHTS = (".onnx", ".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_ABOUT_A_RESULT = ("README.md", "report.json", "report.html", "workflow.yaml", "best.yaml", "optuna.journal")
#: tensors from this size on lie beside a graph, which cannot be larger than 2 GB itself
_BESIDE_BYTES = 1 << 30
#: tensors up to this size lie in the graph also where others lie beside it
_INSIDE_BYTES = 256


def load_graphs(path: Path) -> dict[str, ir.Model]:
    """The graphs of a model by the names that they are written under; see `load_graph`."""
    return {name: load_graph(file) for name, file in _graph_files(path).items()}


def save_graphs(graphs: Mapping[str, ir.Model], path: Path, used: Iterable[Path], output: Path) -> None:
    """Write the graphs of a model below ``output``, and what else belongs to the model at ``path``.

    ``used``: files of that model which hold tensors of its graphs, and so are not copied.
    """
    for name, graph in graphs.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        save_graph(graph, output / name)
    carry_over(path, used, output)


def rewrite_graphs(path: Path, output: Path, change: Callable[[Path, Path], None]) -> None:
    """Write a model anew below ``output``: each graph by ``change(file, target)``, which writes its tensors, too; the
    rest as it is."""
    used: set[Path] = set()
    for name, file in _graph_files(path).items():
        used |= external_files(load_graph(file))
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        change(file, target)
    carry_over(path, used, output)


def _graph_files(path: Path) -> dict[str, Path]:
    if not (files := find_graphs(path)):
        raise ColdpressError(f"{path} holds no ONNX graph", hint="pass a folder with a .onnx file")
    return files


def save_graph(model: ir.Model, target: Path) -> None:
    """Write a graph, and its tensors where `settle` has them: inside, or one after the other to a file beside it.

    Tensors that share their bytes in a file still do. The graph is of no use afterwards: its tensors lie in that file.
    """
    beside = settle(model)
    if beside:
        _write_beside(beside, target.with_name(f"{target.name}.data"))
    ir.save(model, target)


def settle(model: ir.Model) -> list[ir.Value]:
    """Let tensors be in memory or not, as they would be after the graph was saved and loaded; returns those that are in
    a file, or will do so.

    All but small ones are in files if one is, or if they are too many for the file of the graph.
    """
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in values if value.const_value is not None]
    if not any(map(is_beside, tensors)) and sum(tensor.nbytes for tensor in tensors) < _BESIDE_BYTES:
        return []
    beside = []
    for value in values:
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes > _INSIDE_BYTES:
            value.const_value = tensor if is_beside(tensor) else _beside(tensor)
            beside.append(value)
        elif is_beside(tensor):
            value.const_value = read(tensor)
    return beside


def is_beside(tensor: Any) -> bool:
    """Whether a tensor is not in memory: it lies in a file, or is computed when it is written to one."""
    return isinstance(tensor, ir.ExternalTensor | ir.LazyTensor)


def _beside(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape), name=tensor.name)


def _write_beside(values: Sequence[ir.Value], data: Path) -> None:
    """Write tensors to a data file, those with the same bytes once, and let them lie there."""
    places: dict[Any, int] = {}
    with data.open("wb") as stream:
        for value in values:
            tensor: Any = value.const_value
            is_external = isinstance(tensor, ir.ExternalTensor)
            content = (tensor.path, tensor.offset, tensor.nbytes) if is_external else value.name
            if content not in places:
                places[content] = stream.seek(aligned(stream.tell(), tensor.nbytes))
                tensor.tofile(stream)
            value.const_value = ir.ExternalTensor(
                data.name, places[content], tensor.nbytes, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )


def load_graph(file: Path) -> ir.Model:
    """A graph whose external tensors stay where they are, its sparse ones dense.

    ColdpressError for a file that is no graph, and for one whose tensors are not all below its folder.

    Before IR version 4 every initializer had to be an input, too; in later ones that means that it may be replaced.
    """
    import onnx

    def told(error: BaseException) -> ColdpressError:
        return ColdpressError(f"{file} cannot be read as an ONNX model: {error}", hint="export or download it again")

    with raised_as(told):
        proto = onnx.load(str(file), load_external_data=False)
        check_external(proto.graph, file)
        resolve_external(proto.graph, file)
        _densify(proto.graph)
        model = ir.from_proto(proto)
    if model.ir_version < _INITIALIZERS_ALONE:
        for value in [value for value in model.graph.inputs if value.is_initializer()]:
            model.graph.inputs.remove(value)
        model.ir_version = _INITIALIZERS_ALONE
    return model


#: the IR version from which on an initializer need not be an input
_INITIALIZERS_ALONE = 4


def _densify(graph: onnx.GraphProto) -> None:
    """Write sparse initializers out, as few tools know them; in subgraphs, too."""
    from onnx import numpy_helper

    for sparse in graph.sparse_initializer:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _densify(inner)


#: numbers of fewer bits lie several to a byte
_BYTE_BITS = 8


def array_of(tensor: Any) -> np.ndarray:
    """The values of a small tensor; bfloat16 in the type of ml_dtypes."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < _BYTE_BITS:
        return np.array(tensor.numpy())
    values = np.fromfile(tensor.path, tensor.dtype.numpy(), tensor.size, offset=tensor.offset or 0)
    return values.reshape([int(size) for size in tensor.shape])


def read(tensor: ir.TensorProtocol) -> ir.Tensor:
    """A tensor in memory."""
    return ir.Tensor(array_of(tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def external_files(model: ir.Model) -> set[Path]:
    """The files that tensors of a model lie in."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return {Path(tensor.path).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def copy_model(path: Path, output: Path, without: Iterable[str] = ()) -> None:
    """The whole model below ``output``, sharing bytes where that can be; not what was written about a result, nor
    ``without``."""
    if path.is_file():
        beside = files_beside(path)
        names = [(path, "model.onnx"), *((file, file.relative_to(path.parent).as_posix()) for file in beside)]
    else:
        names = [(file, file.relative_to(path).as_posix()) for file in files_of(path)]
    left_out = {*_ABOUT_A_RESULT, *without}
    for file, name in names:
        if name not in left_out:
            link_or_copy(file, output / name)


def carry_over(path: Path, used: Iterable[Path], output: Path) -> None:
    """Copy what else a model's folder holds (tokenizer, settings); not ``used`` files, nor weights in other formats.

    What ``output`` holds already stays.
    """
    if path.is_file():
        return
    gone = set(used)
    for file in files_of(path):
        name = file.relative_to(path)
        if file.suffix in _OTHER_WEIGHTS or name.as_posix() in _ABOUT_A_RESULT or file.resolve() in gone:
            continue
        if not (output / name).exists():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, output / name)
