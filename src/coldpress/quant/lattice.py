"""Weights that lie on a grid already: found again, so that nothing is lost by rounding them once more.

A checkpoint may have been quantized before and hold floats all the same: exports of quantization-aware training,
unpacked GGUF files, folders that were dequantized. There the values of a block are whole multiples of one number, each
rounded to the type that it is stored in. A search for the least error finds most of these numbers, but not where no
weight of a block lies at the end of the grid; this search finds all of them, and the scale again that the multiples
were made with.

A few blocks are looked at first. Those of other weights fail this by chance as good as never, so it costs them nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coldpress.quant.grid import Codes, Fit, Fitter, Floats, Grid, quantize

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: how many bits at the end of a float32 are zero in all values of a narrower type -> where its normal numbers begin
_NARROWER = {16: 2.0**-126, 13: 2.0**-14}
_SMALLEST = {0: 2.0**-126, **_NARROWER}
#: what products and quotients in float32 may add to half a last place, relatively, and to a number of steps
_SLACK, _ROUNDING = np.float32(1 + 2.0**-10), np.float32(2.0**-22)
#: what a bound may be passed by where products were rounded to float32 before they were rounded to less
_TWICE_ROUNDED = 1 + 2.0**-24
#: the fraction of powers of two
_POWER = 0.5
#: a type of scales, and another whose numbers it has, too, within the range of weights
_HOLDS = ("float16", "bfloat16")
#: smaller weights count as this where something is divided by them
_LEAST = np.float32(2.0**-120)
#: blocks that speak for a weight; and for what is told of it
_FIRST_LOOK, _LOOK = 3, 32
#: weights of a block that rule out most multiples, and (block, multiple) pairs that are tried at once
_FEW, _PAIRS = 4, 1 << 15
#: how many steps the largest weight of a block often is on symmetric grids
_LIKELY = {2: (2, 1), 3: (4, 3), 4: (8, 7), 8: (127, 128)}
#: the share of blocks that a search over many multiples is worth, to find a scale and to find a better one
_WORTH, _MANY_MULTIPLES, _FEW_MULTIPLES = 0.25, 128, 16
_BLOCK_SIZES = (256, 128, 64, 32, 16)
#: bits of a code at most, where zero points are whole and where they are not
_MOST_BITS, _MOST_BITS_ABOVE_MINIMUM = 8, 5
#: the logarithm of the chance that other weights pass for a lattice
_CHANCE = -30.0


@dataclass(frozen=True)
class Lattice:
    """Where weights lie: ``bits`` a code, blocks of ``block_size`` with a scale each, with or without zero points.

    ``distance``: that of the zero points from the nearest whole code, in steps, on average; 0 where all are whole.
    """

    bits: int
    block_size: int
    symmetric: bool
    distance: float = 0.0


def on_lattice(weight: Floats, grid: Grid) -> Codes | None:
    """The codes of ``weight [rows, K]`` where all of it lies on a grid of this kind; else None.

    They stand for ``weight`` as far as the type of the scales allows. If the scales were made in a type that
    ``grid.scale_dtype`` holds, then what they stand for, rounded to the type that the weights came in, is the same bit
    by bit.
    """
    if not seems_on_lattice(weight, grid):
        return None
    try:
        return quantize(weight, grid, lambda columns: _whole_fit(columns, grid))
    except _OffLatticeError:
        return None


def keeping_lattice(weight: Floats, grid: Grid, fit: Fitter) -> Fitter:
    """As ``fit``, but where ``weight [rows, K]`` seems to lie on a grid of this kind, blocks that do keep their
    codes."""
    return (lambda columns: _fit_or(columns, grid, fit)) if seems_on_lattice(weight, grid) else fit


def seems_on_lattice(weight: Floats, grid: Grid) -> bool:
    """Whether a few blocks of ``weight [rows, K]`` lie on a grid of this kind."""
    columns = _sample(weight, grid.block_size, _FIRST_LOOK)
    if columns is None:
        return False
    return len(np.unique(_fitting(_Blocks.of(columns, grid)).which)) == columns.shape[1]


def lattice_of(weight: Floats) -> Lattice | None:
    """The coarsest lattice of at most 8 bits that some blocks of ``weight [rows, K]`` lie on; None for other weights.

    Up to 5 bits the zero points may be anything, as with the float minima of GGUF's Q4_1.
    """
    sizes = [size for size in _BLOCK_SIZES if weight.ndim == 2 and weight.size and weight.shape[1] % size == 0]
    for has_minimum in (False, True):
        if sizes and _seen_on(weight, sizes[-1], _FIRST_LOOK, has_minimum):
            return next(filter(None, (_seen_on(weight, size, _LOOK, has_minimum) for size in sizes)), None)
    return None


class _OffLatticeError(Exception):
    """A block that lies on no grid."""


@dataclass
class _Tried:
    """What multiples of some blocks, by their numbers, say: ``which``, ``multiples``, ``least`` and ``most`` ``[N]``.

    The last two are the bounds of the scale, for steps ``[B, N]``.
    """

    which: NDArray[np.int64]
    multiples: Floats
    least: Doubles
    most: Doubles
    steps: Floats

    def some(self, chosen: Flags | NDArray[np.int64]) -> _Tried:
        return _Tried(
            self.which[chosen], self.multiples[chosen], self.least[chosen], self.most[chosen], self.steps[:, chosen]
        )

    def put_into(self, whole: _Tried) -> None:
        """Take the places of these blocks; of several for one block the last counts."""
        for name in ("multiples", "least", "most"):
            getattr(whole, name)[self.which] = getattr(self, name)
        whole.steps[:, self.which] = self.steps

    @property
    def fits(self) -> Flags:
        return self.multiples >= 0

    def fit(self, grid: Grid) -> Fit:
        """Their grids; what stands for a block that does not fit has no meaning."""
        low, high = self.steps.min(axis=0, initial=0), self.steps.max(axis=0, initial=0)
        middle, top = np.full_like(low, grid.middle), np.float32(grid.top)
        if grid.symmetric:
            zeros = np.where((low >= -middle) & (high < middle), middle, middle - 1)
        else:
            zeros = np.clip(middle, -low, np.maximum(top - high, -low))
        return Fit(self.scales(grid), zeros, self.steps)

    def scales(self, grid: Grid) -> Floats:
        """Of the numbers between the bounds that of the fewest digits: what a scale was made as is seldom longer.

        At a bound a product is as far from the weight as from the next number: those between the bounds come first.
        """
        middle = ((self.least + self.most) / 2).astype(np.float32)
        found = grid.stored(middle)
        for holds in (self._have, self._surround):
            for scale_dtype in ("float32", "float16", "bfloat16"):
                if grid.scale_dtype in ("float32", scale_dtype) or (grid.scale_dtype, scale_dtype) == _HOLDS:
                    short = replace(grid, scale_dtype=scale_dtype).stored(middle)
                    found = np.where(holds(short), short, found)
        return found

    def have_scales(self, grid: Grid, inside: bool = True) -> Flags:
        """Whether the type of the scales has a number between the bounds; or else at one of them."""
        return (self._surround if inside else self._have)(self.scales(grid))

    def _have(self, scales: Floats) -> Flags:
        return (self.least <= scales) & (scales <= self.most)

    def _surround(self, scales: Floats) -> Flags:
        return (self.least < scales) & (scales < self.most)


@dataclass
class _Blocks:
    """Values ``[B, G]``, how far each may be from what it was rounded from, and both of the largest of each block.

    ``grid``: what the steps have to fit on, or None for any from 0 on.
    """

    values: Floats
    half: Floats
    largest: Floats
    largest_half: Floats
    grid: Grid | None

    @classmethod
    def of(cls, columns: Floats, grid: Grid | None) -> _Blocks:
        """Those of weights ``[B, G]``; without a grid, those of what lies above the least weight of each block."""
        half = _half_places(columns)
        if grid is None:
            least = columns.argmin(axis=0)[None]
            columns = columns - np.take_along_axis(columns, least, axis=0)
            half = 2 * (half + np.take_along_axis(half, least, axis=0))  # the difference is rounded, too
        return cls(columns, half, np.abs(columns).max(axis=0, initial=0), half.max(axis=0, initial=0), grid)

    def some(self, which: NDArray[np.int64], rows: int | None = None) -> _Blocks:
        """Those of these numbers, or their first ``rows`` values."""
        values, half = self.values[:rows, which], self.half[:rows, which]
        return _Blocks(values, half, self.largest[which], self.largest_half[which], self.grid)

    def whole(self, multiples: Floats) -> tuple[Floats, Floats, Flags]:
        """The steps ``[B, G]`` if the largest is so many, the room for each, and where all steps are whole ``[G]``."""
        with np.errstate(invalid="ignore", over="ignore"):  # weights that are not finite fit nothing
            inverse = multiples / np.maximum(self.largest, _LEAST)
            exact = self.values * inverse
            steps = np.rint(exact)
            np.subtract(exact, steps, out=exact)
            of_largest = self.largest_half / np.maximum(multiples, np.float32(1))
            room = (self.half + np.abs(steps) * of_largest) * (inverse * _SLACK) + multiples * _ROUNDING
            return steps, room, (np.abs(exact) <= room).all(axis=0) & self._holds(steps)

    def tried(self, which: NDArray[np.int64], multiples: Floats) -> _Tried:
        """Those of these blocks for which their multiples ``[N]`` fit to the last place."""
        steps, _, fits = self.some(which).whole(multiples)
        which, multiples, steps = which[fits], multiples[fits], steps[:, fits]
        values, taken = np.abs(self.values[:, which], dtype=np.float64), np.abs(steps)
        room = self.half[:, which].astype(np.float64)
        below = np.where(np.frexp(values)[0] == _POWER, room / 2, room)  # numbers are closer below a power of two
        steps_or_one = np.maximum(taken, np.float32(1))
        least = np.where(taken > 0, (values - below) / steps_or_one, 0).max(axis=0, initial=0)
        most = np.where(taken > 0, (values + room) / steps_or_one, np.inf).min(axis=0, initial=np.inf)
        fits = (least <= most * _TWICE_ROUNDED) & ((taken > 0) | (values <= room)).all(axis=0)
        return _Tried(which, multiples, least, most, steps).some(fits)

    def _holds(self, steps: Floats) -> Flags:
        """Whether the grid has all these steps."""
        if self.grid is None:
            return np.ones(steps.shape[1], np.bool_)
        low, high = steps.min(axis=0, initial=0), steps.max(axis=0, initial=0)
        return _is_symmetric(low, high, self.grid.middle) if self.grid.symmetric else high - low <= self.grid.top


def _is_symmetric(low: Floats, high: Floats, middle: int) -> Flags:
    """Whether steps between ``low`` and ``high`` are on a grid without zero points, by one sign of the scale or the
    other."""
    found: Flags = ((low >= -middle) & (high < middle)) | ((low > -middle) & (high <= middle))
    return found


def _half_places(columns: Floats) -> Floats:
    """Half a unit in the last place of each value ``[B, G]``, in the narrowest type that holds all of them."""
    bits = np.ascontiguousarray(columns).view(np.int32)
    used = int(np.bitwise_or.reduce(bits, axis=None))
    missing = next((count for count in _NARROWER if not used & ((1 << count) - 1)), 0)
    powers = (bits & np.int32(0x7F800000)).view(np.float32)
    half: Floats = np.maximum(powers, np.float32(_SMALLEST[missing])) * np.float32(2.0 ** (missing - 24))
    return half


def _sample(weight: Floats, block_size: int, count: int) -> Floats | None:
    """At most so many blocks from all over ``weight [rows, K]``, as columns ``[block_size, count]``; None without
    weights."""
    if weight.ndim != 2 or not weight.size:
        return None
    blocks = -(-weight.shape[1] // block_size)
    places = np.unique(np.linspace(0, weight.shape[0] * blocks - 1, count).astype(np.int64))
    columns = np.zeros((block_size, len(places)), np.float32)
    for number, (row, block) in enumerate(zip(*np.divmod(places, blocks), strict=True)):
        part = weight[row, block * block_size : (block + 1) * block_size]
        columns[: len(part), number] = part
    return columns


def _whole_fit(columns: Floats, grid: Grid) -> Fit:
    found = _found(columns, grid)
    if not found.fits.all():
        raise _OffLatticeError
    return found.fit(grid)


def _fit_or(columns: Floats, grid: Grid, fit: Fitter) -> Fit:
    found = _found(columns, grid)
    if found.fits.all():
        return found.fit(grid)
    kept, other = found.fit(grid), fit(columns)
    scales, zeros, steps = (
        np.where(found.fits, own, others)
        for own, others in ((kept.scales, other.scales), (kept.zeros, other.zeros), (kept.steps, other.steps))
    )
    return Fit(scales, zeros, steps)


def _found(columns: Floats, grid: Grid) -> _Tried:
    """For each block ``[B, G]`` the multiple that fits, -1 where none does."""
    blocks, count = _Blocks.of(columns, grid), columns.shape[1]
    found = _Tried(
        np.arange(count), np.full(count, np.float32(-1)), np.ones(count), np.ones(count), np.zeros_like(columns)
    )
    found.multiples[blocks.largest == 0] = 0
    for guess in _guesses(blocks, grid, found):
        left = np.flatnonzero(~found.fits & (guess >= 1) & (guess <= grid.top))
        blocks.tried(left, guess[left]).put_into(found)
    _search(blocks, ~found.fits, grid, found, _MANY_MULTIPLES)
    # steps with a common divisor have several scales, not all of which are short
    _search(blocks, found.fits & ~found.have_scales(grid) & (found.multiples > 0), grid, found, _FEW_MULTIPLES)
    return found


def _search(blocks: _Blocks, which: Flags, grid: Grid, found: _Tried, few: int) -> None:
    """Put what fits some blocks into ``found``, with scales that are stored as they are if there are any.

    Of many blocks and more than a ``few`` multiples that would take too long.
    """
    if np.count_nonzero(which) > _WORTH * len(which) and _count(grid) > few:
        return
    numbers = np.flatnonzero(which)
    tried = _fitting(blocks.some(numbers))
    tried.which = numbers[tried.which]
    for better in (tried, *(tried.some(tried.have_scales(grid, inside)) for inside in (False, True))):
        better.put_into(found)


def _guesses(blocks: _Blocks, grid: Grid, found: _Tried) -> Iterator[Floats]:
    """Multiples ``[G]`` that are worth a try: those of common grids, and those of the scales of neighbouring blocks."""
    if not grid.symmetric:
        span = np.maximum(np.ptp(blocks.values, axis=0), blocks.largest)
        for top in (grid.top, grid.top - 1):
            yield np.rint(blocks.largest / np.maximum(span, _LEAST) * np.float32(top))
    for multiple in _LIKELY[grid.bits]:
        yield np.full_like(found.multiples, multiple)
    for turned in (slice(None), slice(None, None, -1)):
        known = np.where(found.multiples > 0, blocks.largest / np.maximum(found.multiples, np.float32(1)), 0)
        yield np.rint(blocks.largest / np.maximum(_last_known(known[turned])[turned], _LEAST))


def _last_known(values: Floats) -> Floats:
    """For each place the last value up to there that is not 0."""
    places = np.maximum.accumulate(np.where(values > 0, np.arange(len(values)), 0))
    return values[places]


def _fitting(blocks: _Blocks) -> _Tried:
    """All multiples that fit, in falling order for each block."""
    grid, count = blocks.grid, len(blocks.largest)
    most = _count(grid)
    at_once, parts = max(1, _PAIRS // most), []
    for start in range(0, count, at_once):
        own = np.arange(start, min(start + at_once, count))
        which, multiples = np.repeat(own, most), np.tile(np.arange(most, 0, -1, dtype=np.float32), len(own))
        _, _, may_fit = blocks.some(which, _FEW).whole(multiples)
        parts.append(blocks.tried(which[may_fit], multiples[may_fit]))
    empty = blocks.tried(np.zeros(0, np.int64), np.zeros(0, np.float32))
    return _Tried(
        *(np.concatenate([getattr(part, name) for part in (*parts, empty)], axis=-1) for name in _Tried.__annotations__)
    )


def _count(grid: Grid | None) -> int:
    """How many steps the largest weight of a block may be."""
    if grid is None:
        return (1 << _MOST_BITS_ABOVE_MINIMUM) - 1
    return grid.middle if grid.symmetric else grid.top


def _seen_on(weight: Floats, size: int, count: int, has_minimum: bool) -> Lattice | None:
    """The lattice of so many blocks of ``weight``, if all of them lie on one; of many, if that is hardly by chance."""
    columns = _sample(weight, size, count)
    assert columns is not None
    blocks = _Blocks.of(columns, None if has_minimum else Grid(_MOST_BITS, size, False))
    tried = _fitting(blocks)
    least = np.full(columns.shape[1], np.float32(-1))
    least[tried.which] = tried.multiples
    if (least < 0).any():
        return None
    steps, room, _ = blocks.whole(least)
    chance = np.log(np.clip(2 * room, _LEAST, 1)).sum() + len(least) * np.log(_count(blocks.grid))
    if count == _LOOK and chance > _CHANCE:
        return None
    low, high = steps.min(axis=0, initial=0), steps.max(axis=0, initial=0)
    bits = max(2, int((high - low).max()).bit_length())
    if not has_minimum:
        return Lattice(bits, size, bool(_is_symmetric(low, high, 1 << (bits - 1)).all()))
    zeros = -columns.min(axis=0) * least / np.maximum(blocks.largest, _LEAST)
    return Lattice(bits, size, False, float(np.abs(zeros - np.rint(zeros)).mean()))
