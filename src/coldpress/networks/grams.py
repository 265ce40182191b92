"""The Gram pass: ``H = X'X`` of every distinct input of a decoder's linear layers, from one run over the calibration text.

The inputs are those of a network that is quantized already: each layer's weights are rounded (`kquant`, no data) before it runs,
so what earlier layers, and earlier linears of the same layer, will get wrong is part of what later ones are fitted to. Because
this rounding is always the same, the Gram matrices belong to the model, the text and the grid alone, and every algorithm
and bit budget can be tried on them without running the model again.

Layer by layer the matrices are written to a folder, as is the state between two layers, so a run that was killed goes on
where it was. The hidden states lie in mapped files, never in memory as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import WORK_FAILED, ColdpressError, naming
from coldpress.networks.layerwise import Layerwise, States, Tensors
from coldpress.quant.grid import Floats, Grid, dequantize
from coldpress.quant.kquant import kquant

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, float, float], None]
HEAD = "head"
#: columns of a Gram matrix that are computed at once; what lies below the diagonal of these strips is not computed
_STRIP = 1024


@dataclass
class Gram:
    """``matrix [K, K]`` of the input that ``modules`` share, summed over ``tokens``."""

    modules: tuple[str, ...]
    matrix: Floats
    tokens: int


class GramFolder:
    """Gram matrices on disk: one file a layer, each complete or absent."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __contains__(self, layer: str) -> bool:
        return self._file(layer).is_file()

    def put(self, layer: str, grams: Sequence[Gram]) -> None:
        """Write the matrices of a layer (their upper triangles), then give the file its name."""
        from safetensors.numpy import save_file

        tensors = {str(place): _triangle(gram.matrix) for place, gram in enumerate(grams)}
        facts = [{"tokens": gram.tokens, "modules": gram.modules} for gram in grams]
        scratch = self._file(layer).with_suffix(".part")
        save_file(tensors, scratch, metadata={"grams": json.dumps(facts)})
        os.replace(scratch, self._file(layer))

    def get(self, layer: str) -> list[Gram]:
        """The matrices of a layer; ColdpressError for a file that is cut off."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(layer), framework="np") as file:
                facts = json.loads(file.metadata()["grams"])
                return [
                    Gram(tuple(fact["modules"]), _square(file.get_tensor(str(place))), fact["tokens"])
                    for place, fact in enumerate(facts)
                ]
        except SafetensorError as error:
            raise ColdpressError(
                f"{self._file(layer)} is damaged: {error}", hint="delete its folder and run the command again"
            ) from error

    def _file(self, layer: str) -> Path:
        return self.folder / f"{layer}.grams"


def collect(
    decoder: Layerwise,
    grid: Grid,
    folder: Path,
    skip: Callable[[str], bool] = lambda name: False,
    progress: Progress = lambda *_: None,
) -> GramFolder:
    """Fill ``folder`` with the Gram matrices of all layers and of the head's input; what is there is not done again.

    ``grid`` is what the weights are rounded to on the way, those of linears that ``skip`` names excepted.
    """
    found, layers = GramFolder(folder), decoder.layers
    if HEAD in found:
        return found
    done, states = _resume(decoder, found)
    total, size = len(layers) * len(decoder.ids), len(decoder.ids)
    for place in range(done, len(layers)):
        layer = layers[place]
        weights = decoder.weights(layer)
        _round(weights, [name for name in decoder.linears(layer) if not skip(name)], grid)
        after = _states_file(folder, place + 1, decoder)
        with watching(decoder.linears(layer)) as grams:
            run_to = lambda part, place=place: progress("calibrating", place * size + part, total)  # noqa: E731
            decoder.run(layer, weights, states, after, run_to)
        _check(layer, grams.matrices())
        states = _commit(folder, place, after, found, layer, grams.matrices())
    found.put(HEAD, [_head(decoder, states)])
    _remove_states(folder)
    return found


def _resume(decoder: Layerwise, found: GramFolder) -> tuple[int, States]:
    """How many layers are done, and the states after them."""
    done = sum(1 for layer in decoder.layers if layer in found)
    file = found.folder / f"{done}.npy"
    if file.is_file():
        return done, np.load(file, mmap_mode="r")
    for old in found.folder.iterdir():
        old.unlink()
    states = _states_file(found.folder, 0, decoder)
    decoder.embed(states)
    return 0, _named(found.folder, 0, states)


def _states_file(folder: Path, place: int, decoder: Layerwise) -> States:
    shape = (*decoder.ids.shape, decoder.width)
    return np.lib.format.open_memmap(folder / f"{place}.npy.part", mode="w+", dtype=np.float32, shape=shape)


def _named(folder: Path, place: int, states: States) -> States:
    assert isinstance(states, np.memmap)
    states.flush()
    os.replace(folder / f"{place}.npy.part", folder / f"{place}.npy")
    return states


def _commit(folder: Path, place: int, after: States, found: GramFolder, layer: str, grams: Sequence[Gram]) -> States:
    """First the states behind a layer, then its matrices: so the states that a later run needs are always there."""
    states = _named(folder, place + 1, after)
    found.put(layer, grams)
    (folder / f"{place}.npy").unlink()
    return states


def _remove_states(folder: Path) -> None:
    for file in folder.glob("*.npy*"):
        file.unlink()


def _round(weights: Tensors, linears: Sequence[str], grid: Grid) -> None:
    import torch

    for name in linears:
        weight = weights[f"{name}.weight"]
        with naming(name):
            codes = kquant(weight.cpu().numpy(), grid)
        weights[f"{name}.weight"] = torch.from_numpy(dequantize(codes, weight.shape[1])).to(weight.device)


def _head(decoder: Layerwise, states: States) -> Gram:
    total = _Sum(decoder.width, decoder.device)
    for _, output in decoder.outputs(states):
        total.add(output)
    return Gram((HEAD,), total.matrix(), total.tokens)


def _check(layer: str, grams: Sequence[Gram]) -> None:
    for gram in grams:
        if not np.isfinite(gram.matrix).all():
            raise ColdpressError(
                f"the inputs of {', '.join(gram.modules)} are not finite on the calibration text",
                hint=f"the weights of {layer} or of a layer before it are damaged, or the model overflows",
                exit_code=WORK_FAILED,
            )


@contextmanager
def watching(linears: Mapping[str, Any]) -> Iterator[_Watch]:
    """Sum the Gram matrices of the inputs of linear modules while they run."""
    watch = _Watch()
    hooks = [module.register_forward_pre_hook(watch.hook(name)) for name, module in linears.items()]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    """Linears that are given the very same tensor share a Gram matrix, under the name of the first."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self._members: dict[str, list[str]] = {}
        self._last: list[tuple[torch.Tensor, str]] = []

    def hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def see(_module: Any, args: tuple[Any, ...]) -> None:
            values = args[0]
            leader = next((leader for tensor, leader in self._last if tensor is values), None)
            if leader is None or leader == name:
                self._last = [*self._last, (values, name)][-2:]
                self._members.setdefault(name, [name])
                self._sums.setdefault(name, _Sum(values.shape[-1], values.device)).add(values)
            elif name not in self._members[leader]:
                self._members[leader].append(name)

        return see

    def matrices(self) -> list[Gram]:
        return [Gram(tuple(self._members[name]), total.matrix(), total.tokens) for name, total in self._sums.items()]


class _Sum:
    """``X'X`` summed over batches, on the device; only strips above the diagonal are computed."""

    def __init__(self, size: int, device: Any):
        import torch

        self._sum, self.tokens = torch.zeros(size, size, dtype=torch.float32, device=device), 0

    def add(self, values: torch.Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1]).float()
        self.tokens += len(rows)
        for start in range(0, len(self._sum), _STRIP):
            stop = start + _STRIP
            self._sum[:stop, start:stop].addmm_(rows[:, :stop].T, rows[:, start:stop])

    def matrix(self) -> Floats:
        upper = self._sum.triu()
        whole: NDArray[np.float32] = (upper + upper.triu(1).T).cpu().numpy()
        return whole


def _triangle(matrix: Floats) -> Floats:
    """The upper triangle row by row, ``[K * (K + 1) / 2]``."""
    return np.concatenate([matrix[row, row:] for row in range(len(matrix))])


def _square(triangle: Floats) -> Floats:
    """The symmetric matrix ``[K, K]`` of an upper triangle."""
    size = int((8 * len(triangle) + 1) ** 0.5) // 2
    matrix, start = np.empty((size, size), np.float32), 0
    for row in range(size):
        part = triangle[start : start + size - row]
        matrix[row, row:] = matrix[row:, row] = part
        start += size - row
    return matrix
