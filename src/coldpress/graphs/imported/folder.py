"""The files of an ONNX model: its graphs, where each of their tensors lies, and what else belongs to it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import ColdpressError
from coldpress.graphs.layout import Place
from coldpress.models.checkpoint import Span
from coldpress.models.external_data import check_external
from coldpress.models.model import files_of, find_graphs, link_or_copy

if TYPE_CHECKING:
    import onnx

#: ONNX type -> the name of safetensors for it; the types of weights
FLOATS = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}
#: not carried over: the same weights in another format, and what is written anew about every result
_OTHER_WEIGHTS = (".onnx", ".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_ABOUT_A_RESULT = ("README.md", "report.json", "report.html", "workflow.yaml", "best.yaml", "optuna.journal")
_COPY_BYTES = 1 << 24
#: tensors from this size on lie beside a graph, which cannot be larger than 2 GB itself
_BESIDE_BYTES = 1 << 30


def rewrite_graphs(path: Path, output: Path, change: Callable[[Path, Path], None]) -> None:
    """Write a model anew below ``output``: each graph by ``change(file, target)``, which writes its tensors, too; the
    rest as it is."""
    graphs = find_graphs(path)
    if not graphs:
        raise ColdpressError(f"{path} holds no ONNX graph", hint="pass a folder with a .onnx file")
    used: set[Path] = set()
    for name, file in graphs.items():
        used |= external_files(load_graph(file))
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        change(file, target)
    carry_over(path, used, output)


def save_graph(model: ir.Model, target: Path) -> None:
    """Write a graph, its tensors one after the other to a file beside it; inside, if they were inside and are not too
    many."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    beside = any(isinstance(tensor, ir.ExternalTensor | ir.LazyTensor) for tensor in tensors)
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    external = f"{target.name}.data" if beside or size >= _BESIDE_BYTES else None
    ir.save(model, target, external_data=external)


def infer_shapes(model: ir.Model, policy: str = "refine") -> None:
    """Note the types and shapes of all values, contrib operators included; "override" forgets what was noted before.

    Names of open axes may be any text. Inference reads them as expressions, so it gets others for those that are none.
    """
    from onnx_shape_inference import OpUsageError, ShapeInferenceError, infer_symbolic_shapes

    names = {name for value in _values(model) for name in _odd_names(value)}
    plain = {name: f"axis_called_{place}" for place, name in enumerate(sorted(names))}
    _rename_axes(model, plain)
    with suppress(
        OpUsageError, ShapeInferenceError
    ):  # what it takes for wrong, such as a Loop without condition, stays unknown
        infer_symbolic_shapes(model, policy=policy, warn_on_missing=False)
    _rename_axes(model, {new: old for old, new in plain.items()})


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.outputs)
        yield from (value for node in graph for value in node.outputs)


def _odd_names(value: ir.Value) -> list[str]:
    """The names of open axes that are no identifiers."""
    names = [axis.value for axis in value.shape or () if isinstance(axis, ir.SymbolicDim)]
    return [name for name in names if name is not None and not name.isidentifier()]


def _rename_axes(model: ir.Model, names: Mapping[str, str]) -> None:
    if not names:
        return
    for value in _values(model):
        if value.shape is not None and any(
            axis.value in names for axis in value.shape if isinstance(axis, ir.SymbolicDim)
        ):
            value.shape = ir.Shape(
                names.get(str(axis.value), axis) if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape
            )


def load_graph(file: Path) -> ir.Model:
    """A graph whose external tensors stay where they are, its sparse ones dense.

    ColdpressError for a file that is no graph, and for one whose tensors are not all below its folder.

    Before IR version 4 every initializer had to be an input, too; in later ones that means that it may be replaced.
    """
    import onnx

    try:
        proto = onnx.load(str(file), load_external_data=False)
        check_external(proto.graph, file.parent)
        _densify(proto.graph)
        model = ir.from_proto(proto)
    except ColdpressError:
        raise
    except Exception as error:  # protobuf's and onnx_ir's errors have no common base
        raise ColdpressError(
            f"{file} cannot be read as an ONNX model: {error}", hint="export or download it again"
        ) from error
    ir.external_data.set_base_dir(model.graph, file.parent)
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


class Spans:
    """Tensors as byte ranges of files; those that lie inside a graph are spooled to ``spool`` first."""

    def __init__(self, spool: Path):
        self._spool = spool
        self._ends: dict[int, tuple[Any, int]] = {}  # keeps the tensors alive, so that no id is given twice

    def of(self, name: str, tensor: Any) -> Span:
        """A float tensor as it lies in its file, mapped, not read."""
        file, offset = self._place(name, tensor)
        return Span.contiguous(name, file, FLOATS[tensor.dtype], tuple(int(size) for size in tensor.shape), offset)

    def bytes_of(self, name: str, tensor: Any) -> Span:
        """The bytes of a tensor of whatever type."""
        file, offset = self._place(name, tensor)
        return Span.contiguous(name, file, "U8", (tensor.nbytes,), offset)

    def _place(self, name: str, tensor: Any) -> tuple[Path, int]:
        if isinstance(tensor, ir.ExternalTensor):
            return Path(tensor.path), tensor.offset or 0
        if id(tensor) not in self._ends:
            with self._spool.open("ab") as stream:
                self._ends[id(tensor)] = tensor, stream.tell()
                stream.write(tensor.tobytes())
        return self._spool, self._ends[id(tensor)][1]


def array_of(tensor: Any) -> np.ndarray:
    """The values of a small tensor; bfloat16 in the type of ml_dtypes."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.array(tensor.numpy())
    values = np.fromfile(tensor.path, tensor.dtype.numpy(), tensor.size, offset=tensor.offset or 0)
    return values.reshape([int(size) for size in tensor.shape])


def read(tensor: ir.ExternalTensor) -> ir.Tensor:
    """An external tensor in memory."""
    return ir.Tensor(array_of(tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def external_files(model: ir.Model) -> set[Path]:
    """The files that tensors of a model lie in."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return {Path(tensor.path).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def copy_model(path: Path, output: Path, without: Iterable[str] = ()) -> None:
    """The whole model below ``output``, sharing bytes where that can be; not what was written about a result, nor
    ``without``."""
    if path.is_file():
        graph = load_graph(path)
        names = [(path, "model.onnx"), *((file, file.name) for file in external_files(graph))]
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


def copy_bytes(span: Span, place: Place, data: np.ndarray) -> None:
    """Copy the bytes of a span to their place in a mapped data file, a piece at a time."""
    source, size = span.view(), math.prod(span.shape)
    for start in range(0, size, _COPY_BYTES):
        stop = min(start + _COPY_BYTES, size)
        data[place.offset + start : place.offset + stop] = source[start:stop]
