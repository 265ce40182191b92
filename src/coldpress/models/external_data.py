"""Where the tensors of a graph lie that are not in it: in files of its folder, all there and long enough, or nowhere
that is read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError

if TYPE_CHECKING:
    import onnx

#: large tensors start at multiples of a page, so that a runtime can map them alone; for small ones that is wasted
_PAGE_BYTES, _LARGE_BYTES, _SMALL_ALIGNMENT = 4096, 1 << 20, 64
#: bits of the types that share bytes, as ONNX numbers types: uint4, int4, float4e2m1, uint2, int2
_SMALL = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}


def aligned(offset: int, size: int) -> int:
    """Where in a data file a tensor of ``size`` bytes begins, if what is before it ends at ``offset``."""
    alignment = _PAGE_BYTES if size >= _LARGE_BYTES else _SMALL_ALIGNMENT
    return -(-offset // alignment) * alignment


def check_external_of(file: Path) -> None:
    """`check_external` for the graph in a file; nothing for a file that is no graph."""
    import onnx
    from google.protobuf.message import DecodeError

    with suppress(DecodeError):
        check_external(onnx.load(str(file), load_external_data=False).graph, file)


def files_beside(file: Path) -> list[Path]:
    """The files beside a graph that hold tensors of it; none for a file that is no graph."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except DecodeError:
        return []
    names = {entry.value for tensor in _external(graph) for entry in tensor.external_data if entry.key == "location"}
    return [file.parent / name for name in sorted(names) if (file.parent / name).is_file()]


def resolve_external(graph: onnx.GraphProto, file: Path) -> None:
    """Let tensors name the files that they really lie in, by whole paths without links.

    Readers of the hub's cache need that; such a graph is of use in memory only. `check_external` comes first,
    `below_one_folder` before a runtime gets the graph.
    """
    for tensor in _external(graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str((file.parent / entry.value).resolve())


def below_one_folder(graph: onnx.GraphProto) -> Path | None:
    """Let tensors name the files that they lie in as places below one folder, which is returned; None without such
    tensors."""
    places = [entry for tensor in _external(graph) for entry in tensor.external_data if entry.key == "location"]
    if not places:
        return None
    folder = Path(os.path.commonpath([Path(entry.value).parent for entry in places]))
    for entry in places:
        entry.value = Path(entry.value).relative_to(folder).as_posix()
    return folder


def check_external(graph: onnx.GraphProto, file: Path) -> None:
    """Raise ColdpressError for a tensor of the graph in ``file`` whose own file is missing, too short, or not below the
    folder of the graph.

    That folder is the one where the graph is found, or really lies: the hub's cache links both to one place.
    """
    folder, sizes = file.parent, dict[Path, int]()
    allowed = (folder.resolve(), file.resolve().parent)
    for tensor in _external(graph):
        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = Path(facts.get("location", ""))
        if location.is_absolute() or ".." in location.parts:
            raise ColdpressError(
                f"tensor '{tensor.name}' lies in {location}, outside of the model's folder",
                hint="put the file into the folder of the graph, and save the graph with its name alone",
            )
        data = folder / location
        if data not in sizes:
            if not data.is_file():
                raise ColdpressError(
                    f"tensor '{tensor.name}' lies in {data}, which is missing", hint="is the copy complete?"
                )
            if not any(data.resolve().is_relative_to(place) for place in allowed):
                raise ColdpressError(
                    f"tensor '{tensor.name}' lies in {data}, a link to {data.resolve()}, outside of the model's folder",
                    hint="put the file itself there; ONNX Runtime does not follow such links",
                )
            sizes[data] = data.stat().st_size
        start, length = _number(facts, "offset", 0), _number(facts, "length", _bytes(tensor))
        if start is None or length != _bytes(tensor):
            raise ColdpressError(
                f"tensor '{tensor.name}' has {_bytes(tensor)} bytes, and shall lie at {facts.get('offset', 0)} of"
                f" {data}, {facts.get('length', 'as many')} bytes long",
                hint="save the graph again with its tensors in a file",
            )
        if (end := start + length) > sizes[data]:
            raise ColdpressError(
                f"{data} is cut off: tensor '{tensor.name}' ends at byte {end}, the file has {sizes[data]}",
                hint="download or copy the file again",
            )


def _number(facts: Mapping[str, str], name: str, otherwise: int) -> int | None:
    """A number of bytes as a graph says it; None for what is none."""
    text = facts.get(name, str(otherwise))
    return int(text) if text.isdecimal() else None


def _external(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors in files: initializers, and values of attributes, those of subgraphs included."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _external(inner)
    yield from (tensor for tensor in found if tensor.data_location == tensor.EXTERNAL)


def _bytes(tensor: onnx.TensorProto) -> int:
    """The size of a tensor by its shape and type."""
    from onnx import helper

    bits = _SMALL.get(tensor.data_type) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return math.ceil(math.prod(tensor.dims) * bits / 8)
