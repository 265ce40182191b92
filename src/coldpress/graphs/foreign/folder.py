"""The files of an ONNX model: its graphs, where each of their tensors lies, and what else belongs to it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from coldpress.errors import ColdpressError
from coldpress.graphs.layout import Place
from coldpress.model import files_of, link_or_copy
from coldpress.networks.checkpoint import Span

#: ONNX type -> the name of safetensors for it; the types of weights
FLOATS = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}
#: not carried over: the same weights in another format, and what is written anew about every result
_OTHER_WEIGHTS = (".onnx", ".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_ABOUT_A_RESULT = ("README.md", "report.json", "report.html", "workflow.yaml", "best.yaml", "optuna.journal")
_COPY_BYTES = 1 << 24
#: tensors from this size on lie beside a graph, which cannot be larger than 2 GB itself
_BESIDE_BYTES = 1 << 30


def find_graphs(path: Path) -> dict[str, Path]:
    """The graphs of a model: the name each is written under, relative to the output, and its file.

    A folder's graphs keep their places; a single file becomes ``model.onnx``. Empty for a folder without graphs.
    """
    if path.is_file():
        return {"model.onnx": path}
    return {file.relative_to(path).as_posix(): file for file in files_of(path) if file.suffix == ".onnx"}


def rewrite_graphs(path: Path, output: Path, change: Callable[[Path, Path], None]) -> None:
    """Write a model anew below ``output``: each graph by ``change(file, target)``, which writes its tensors, too; the rest as it is."""
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
    """Write a graph, its tensors one after the other to a file beside it; inside, if they were inside and are not too many."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    beside = any(isinstance(tensor, ir.ExternalTensor | ir.LazyTensor) for tensor in tensors)
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    external = f"{target.name}.data" if beside or size >= _BESIDE_BYTES else None
    ir.save(model, target, external_data=external)


def infer_shapes(model: ir.Model, policy: str = "refine") -> None:
    """Note the types and shapes of all values, contrib operators included; "override" forgets what was noted before.

    Names of open axes may be any text. Inference reads them as expressions, so it gets others for those that are none.
    """
    from onnx_shape_inference import infer_symbolic_shapes

    names = {name for value in _values(model) for name in _odd_names(value)}
    plain = {name: f"axis_called_{place}" for place, name in enumerate(sorted(names))}
    _rename_axes(model, plain)
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
    """A graph whose external tensors stay where they are. ColdpressError for a file that is no graph."""
    try:
        return ir.load(file)
    except Exception as error:  # protobuf's and onnx_ir's errors have no common base
        raise ColdpressError(
            f"{file} cannot be read as an ONNX model: {error}", hint="export or download it again"
        ) from error


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
            return _external(name, tensor), tensor.offset or 0
        if id(tensor) not in self._ends:
            with self._spool.open("ab") as stream:
                self._ends[id(tensor)] = tensor, stream.tell()
                stream.write(tensor.tobytes())
        return self._spool, self._ends[id(tensor)][1]


def _external(name: str, tensor: ir.ExternalTensor) -> Path:
    """The file that a tensor lies in. ColdpressError where it is missing, too short, or not below the graph's folder."""
    location = Path(str(tensor.location))
    if location.is_absolute() or ".." in location.parts:
        raise ColdpressError(f"tensor '{name}' lies in {location}, outside of the model's folder")
    file = Path(tensor.path)
    if not file.is_file():
        raise ColdpressError(f"tensor '{name}' lies in {file}, which is missing", hint="is the copy complete?")
    end = (tensor.offset or 0) + tensor.nbytes
    if end > file.stat().st_size:
        raise ColdpressError(
            f"{file} is cut off: tensor '{name}' ends at byte {end}, the file has {file.stat().st_size}",
            hint="download or copy the file again",
        )
    return file


def array_of(tensor: Any) -> np.ndarray:
    """The values of a small tensor; bfloat16 in the type of ml_dtypes."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.array(tensor.numpy())
    file = _external(str(tensor.name), tensor)
    values = np.fromfile(file, tensor.dtype.numpy(), tensor.size, offset=tensor.offset or 0)
    return values.reshape([int(size) for size in tensor.shape])


def external_files(model: ir.Model) -> set[Path]:
    """The files that tensors of a model lie in."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return {Path(tensor.path).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def copy_model(path: Path, output: Path, without: Iterable[str] = ()) -> None:
    """The whole model below ``output``, sharing bytes where that can be; not what was written about a result, nor ``without``."""
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
