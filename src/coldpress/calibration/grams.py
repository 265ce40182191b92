"""The Gram pass: ``H = X'X`` of every distinct input of a decoder's linear layers, from one run over the calibration
text.

The inputs are those of the float network, so the Gram matrices belong to the model and the text alone, and every
algorithm, grid and bit budget can be tried on them without running the model again.

Each expert of a mixture has matrices of its own, of the tokens that came to it; one that no token came to has none.

Where the processor multiplies in bfloat16, layers run in it; the sums stay float32.

Layer by layer the matrices are written to a folder, as is the state between two layers, so a run that was killed goes
on where it was. The hidden states lie in mapped files, never in memory as a whole; of the matrices, those of one expert
are in memory at a time.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.calibration.saliency import Saliency
from coldpress.errors import WORK_FAILED, ColdpressError, naming
from coldpress.networks import heap
from coldpress.networks.decoder_layer import Watcher
from coldpress.networks.layerwise import Layerwise, States, states_file
from coldpress.networks.weights import Weights
from coldpress.quant.gptq import multiplies_in_bfloat16
from coldpress.quant.grid import Floats, check_weight

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, float, float], None]
HEAD, _FACTS, _HELD = "head", "facts.json", "held.npy"
#: inputs of the head that are kept from its matrix: one of so many, and so many at most
_ONE_IN, _MOST_HELD = 16, 128
#: how often somebody who waits for a layer looks whether it is there
_LOOK_S = 0.02
#: columns of a Gram matrix that are computed at once; what lies below the diagonal of these strips is not computed
_STRIP = 192
#: tokens in one product: a bfloat16 product is rounded once, so the rounding errors of many average out
_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class Gram:
    """The ``matrix [K, K]`` of the input that ``modules`` share, summed over ``tokens``; ``read`` gives it.

    ``alike``: how many tokens of equal weight would tell as much. ``scales [K]``: what the input has been divided by
    since.
    """

    modules: tuple[str, ...]
    tokens: int
    alike: int
    read: Callable[[], Floats]
    scales: Floats | None = None

    @property
    def matrix(self) -> Floats:
        """Read anew each time, so that nothing is in memory that nobody works on."""
        matrix = self.read()
        if self.scales is not None:
            matrix /= self.scales
            matrix /= self.scales[:, None]
        return matrix

    def divided(self, scales: Floats) -> Gram:
        """The matrix for an input that is divided by ``scales``."""
        return replace(self, scales=scales if self.scales is None else self.scales * scales)


#: as `_NewFile.put`
Put = Callable[[Sequence[str], Floats, int, int], None]


class GramFolder:
    """Gram matrices on disk: one file a layer, each complete or absent.

    A file is a zip archive of their upper triangles (``.npy``), so they can be written one by one, and read so.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __contains__(self, layer: str) -> bool:
        return self._file(layer).is_file()

    def new(self, layer: str) -> _NewFile:
        """A file to put the matrices of a layer into."""
        return _NewFile(self._file(layer))

    def get(self, layer: str) -> list[Gram]:
        """The matrices of a layer; ColdpressError for a file that is cut off."""
        with self._open(layer) as archive:
            facts = json.loads(archive.read(_FACTS))
        return [
            Gram(tuple(fact["modules"]), fact["tokens"], fact["alike"], partial(self._read, layer, place))
            for place, fact in enumerate(facts)
        ]

    def _read(self, layer: str, place: int) -> Floats:
        with self._open(layer) as archive, archive.open(f"{place}.npy") as member:
            return _square(np.lib.format.read_array(member))

    def held(self) -> Floats:
        """Some inputs of the head ``[tokens, width]`` that are not in its matrix."""
        self.get(HEAD)
        with self._open(HEAD) as archive, archive.open(_HELD) as member:
            found: Floats = np.lib.format.read_array(member)
        return found

    @contextmanager
    def _open(self, layer: str) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._file(layer)) as archive:
                yield archive
        except (zipfile.BadZipFile, KeyError) as error:
            raise ColdpressError(
                f"{self._file(layer)} is damaged: {error}", hint="delete its folder and run the command again"
            ) from error

    def _file(self, layer: str) -> Path:
        return self.folder / f"{layer}.zip"


class GrowingGrams(GramFolder):
    """A folder that a Gram pass fills in a thread of its own: who asks for a layer waits until it is there.

    ``collecting`` does the pass, given what to call while it goes on. After the ``with`` block the pass has ended.
    """

    def __init__(self, folder: Path, collecting: Callable[[Progress], GramFolder]):
        super().__init__(folder)
        self._stopped, self._thread = False, ThreadPoolExecutor(1)
        self._pass = self._thread.submit(collecting, self._go_on)

    def __enter__(self) -> GrowingGrams:
        return self

    def get(self, layer: str) -> list[Gram]:
        while layer not in self and not self._pass.done():
            wait([self._pass], _LOOK_S)
        if layer not in self:
            self._pass.result()
        return super().get(layer)

    def _go_on(self, *_: Any) -> None:
        if self._stopped:
            raise CancelledError

    def __exit__(self, kind: object, *_: object) -> None:
        self._stopped = kind is not None
        self._thread.shutdown()
        if kind is None:
            self._pass.result()


class _NewFile:
    """A file of matrices that is being written; it gets its name when it is closed."""

    def __init__(self, file: Path):
        self._file, self._scratch = file, file.with_suffix(".part")
        self._scratch.unlink(missing_ok=True)  # a run that failed in this process may still have it open
        self._archive = zipfile.ZipFile(self._scratch, "w")
        self._facts: list[dict[str, Any]] = []

    def put(self, modules: Sequence[str], triangle: Floats, tokens: int, alike: int) -> None:
        """Add the matrix that some modules share, as its upper triangle row by row."""
        with self._archive.open(f"{len(self._facts)}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, triangle)
        self._facts.append({"tokens": tokens, "alike": alike, "modules": list(modules)})

    def hold(self, inputs: Floats) -> None:
        """Add inputs ``[tokens, width]`` as they are."""
        with self._archive.open(_HELD, "w") as member:
            np.lib.format.write_array(member, inputs)

    def close(self) -> None:
        with self._archive.open(_FACTS, "w") as member:
            member.write(json.dumps(self._facts).encode())
        self._archive.close()
        os.replace(self._scratch, self._file)


def collect(
    decoder: Layerwise,
    folder: Path,
    progress: Progress = lambda *_: None,
    counting: Saliency | None = None,
) -> GramFolder:
    """Fill ``folder`` with the Gram matrices of all layers and of the head's input; what is there is not done again.

    ``counting``: how much each token counts; all alike where it says nothing.
    """
    found, layers = GramFolder(folder), decoder.layers
    decoder.in_bfloat16 = multiplies_in_bfloat16(decoder.device)
    if HEAD in found:
        return found
    done, states = _resume(decoder, found)
    total, size = len(layers) * len(decoder.ids), len(decoder.ids)
    with _Disk() as disk:
        for place in range(done, len(layers)):
            layer = layers[place]
            after, file = states_file(folder / f"{place + 1}.npy.part", decoder), found.new(layer)
            run_to = lambda windows, place=place: progress("calibrating", place * size + windows, total)  # noqa: E731
            watch = _Watch(layer, partial(disk.write, file.put), run_to, counting or {})
            weights = decoder.weights(layer)
            try:
                decoder.run(layer, weights, states, after, watch)
                watch.left(watch.modules)
            except ColdpressError:
                _name_damage(weights)
                raise
            disk.write(_commit, folder, place, after, file)
            states = after
            heap.give_back(heap.LAYERS_BYTES)
    _put_head(decoder, states, found.new(HEAD))
    _remove_states(folder)
    return found


def _name_damage(weights: Weights) -> None:
    """Raise ColdpressError for the first weight of a layer that is not finite: what came of it says less."""
    for name, weight in weights.items():
        with naming(name.removesuffix(".weight")):
            check_weight(weight)


class _Disk:
    """Writes one thing at a time while the next is computed; a failure shows at the next write or at the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> _Disk:
        return self

    def write(self, how: Callable[..., None], *what: Any) -> None:
        self._wait()
        self._last = self._thread.submit(how, *what)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()


def _resume(decoder: Layerwise, found: GramFolder) -> tuple[int, States]:
    """How many layers are done, and the states after them."""
    done = sum(1 for layer in decoder.layers if layer in found)
    file = found.folder / f"{done}.npy"
    if file.is_file():
        return done, np.load(file, mmap_mode="r")
    for old in found.folder.iterdir():
        old.unlink()
    states = states_file(found.folder / "0.npy.part", decoder)
    decoder.embed(states)
    return 0, _named(found.folder, 0, states)


def _named(folder: Path, place: int, states: States) -> States:
    assert isinstance(states, np.memmap)
    states.flush()
    os.replace(folder / f"{place}.npy.part", folder / f"{place}.npy")
    return states


def _commit(folder: Path, place: int, after: States, grams: _NewFile) -> None:
    """First the states behind a layer, then its matrices: so the states that a later run needs are always there."""
    _named(folder, place + 1, after)
    grams.close()
    (folder / f"{place}.npy").unlink()


def _remove_states(folder: Path) -> None:
    for file in folder.glob("*.npy*"):
        file.unlink()


def _put_head(decoder: Layerwise, states: States, file: _NewFile) -> None:
    import torch

    total, held = _Sum(decoder.width, decoder.device), []
    step = max(_ONE_IN, -(-decoder.ids.size // _MOST_HELD))
    for part, output in decoder.outputs(states):
        rows = output.reshape(-1, output.shape[-1])
        places = torch.arange(len(rows), device=rows.device) + part.start * decoder.ids.shape[1]
        is_held = places % step == step - 1  # no text begins with one
        held.append(rows[is_held].float().cpu().numpy())
        total.add(rows[~is_held])
    file.put([HEAD], total.triangle(), total.tokens, total.alike)
    file.hold(np.concatenate(held))
    file.close()


class _Watch(Watcher):
    """Sums the Gram matrices of a layer's inputs, and gives each to ``put`` when nothing more comes to its modules.

    Linears that are given the very same tensor share a matrix, under the name of the first.
    """

    def __init__(self, layer: str, put: Put, progress: Callable[[float], None], counting: Saliency):
        self._layer, self._put, self._progress, self._counting = layer, put, progress, counting
        self._sums: dict[str, _Sum] = {}
        self._members: dict[str, list[str]] = {}
        self._last: list[tuple[torch.Tensor, str]] = []

    def see(self, module: str, inputs: torch.Tensor) -> None:
        leader = next((leader for tensor, leader in self._last if tensor is inputs), None)
        if leader is None or leader == module:
            self._last = [*self._last, (inputs, module)][-2:]
            if module not in self._sums:
                self._members[module] = [module]
                self._sums[module] = _Sum(inputs.shape[-1], inputs.device, self._counting.get(module))
            self._sums[module].add(inputs)
        elif module not in self._members[leader]:
            self._members[leader].append(module)

    @property
    def modules(self) -> list[str]:
        """Those whose matrices are still being summed."""
        return list(self._sums)

    def ran(self, windows: float) -> None:
        self._progress(windows)

    def left(self, modules: Collection[str]) -> None:
        for leader in [module for module in modules if module in self._sums]:
            total = self._sums.pop(leader)
            triangle = total.triangle()
            self._check(leader, triangle)
            self._put(self._members[leader], triangle, total.tokens, total.alike)

    def _check(self, leader: str, sums: Floats) -> None:
        if not np.isfinite(sums).all():
            raise ColdpressError(
                f"the inputs of {', '.join(self._members[leader])} are not finite on the calibration text",
                hint=f"the weights of {self._layer} or of a layer before it are damaged, or the model overflows",
                exit_code=WORK_FAILED,
            )


class _Sum:
    """``X'X`` summed over batches in float32, on the device; only strips above the diagonal are computed.

    ``counts [tokens]``: how much each token counts, in the order in which they come; None: all alike.
    """

    def __init__(self, size: int, device: Any, counts: Floats | None = None):
        import torch

        self._sum, self.tokens = torch.zeros(size, size, dtype=torch.float32, device=device), 0
        self._counts = None if counts is None else torch.from_numpy(counts).to(device)

    def add(self, values: torch.Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1])
        if self._counts is not None:
            rows = rows * self._counts[self.tokens : self.tokens + len(rows), None].sqrt().to(rows)
        self.tokens += len(rows)
        for part in rows.split(_TOKENS):
            for start in range(0, len(self._sum), _STRIP):
                stop = start + _STRIP
                self._sum[:stop, start:stop] += part[:, :stop].T @ part[:, start:stop]

    @property
    def alike(self) -> int:
        """How many tokens of equal weight would tell as much."""
        if self._counts is None:
            return self.tokens
        seen = self._counts[: self.tokens].double()
        return int(seen.sum().square() / seen.square().sum())

    def triangle(self) -> Floats:
        """The upper triangle of the sum row by row, ``[K * (K + 1) / 2]``."""
        matrix = self._sum.cpu().numpy()
        return np.concatenate([matrix[row, row:] for row in range(len(matrix))])


def _square(triangle: Floats) -> Floats:
    """The symmetric matrix ``[K, K]`` of an upper triangle."""
    size = int((8 * len(triangle) + 1) ** 0.5) // 2
    matrix, start = np.zeros((size, size), np.float32), 0
    for row in range(size):
        matrix[row, row:] = triangle[start : start + size - row]
        start += size - row
    for first in range(0, size, _STRIP):
        own, rest = slice(first, first + _STRIP), slice(first + _STRIP, None)
        matrix[rest, own] = matrix[own, rest].T
        matrix[own, own] += np.triu(matrix[own, own], 1).T
    return matrix
