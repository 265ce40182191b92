"""Where the error sits: one cell for each linear layer, rows in the order of the network, columns by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from coldpress.report import NOT_MEASURED, number, plain, quantity, size

_STEPS = 7
_WIDTH, _HEIGHT, _GAP, _MARGIN = 44, 15, 2, 30
_STRIDE = _HEIGHT + _GAP
_WORST, _FITTING = 6, 8
Layer = Mapping[str, Any]
Place = tuple[str, int, str]


@dataclass(frozen=True)
class _Scale:
    """Seven colours from ``low`` to ``high``; smaller errors share the first colour.

    Low is the tenth percentile, so that a few layers with more bits do not flatten the rest, and at most half of
    high, so that noise does not look like a pattern.
    """

    low: float
    high: float

    @classmethod
    def of(cls, errors: Iterable[float]) -> _Scale:
        ranked = sorted(errors)
        return cls(min(ranked[len(ranked) // 10], ranked[-1] / 2), ranked[-1]) if ranked else cls(0.0, 1.0)

    def step(self, error: float) -> int:
        width = (self.high - self.low) or 1.0
        return min(_STEPS - 1, max(0, int(_STEPS * (error - self.low) / width)))


def heat_map(layers: Sequence[Layer]) -> str:
    """The map, its scale, the worst layers and a table of all of them, as HTML; empty without layers."""
    if not layers:
        return ""
    errors = [error for layer in layers if (error := _error(layer)) is not None and not _exact(layer)]
    scale = _Scale.of(errors)
    maps = "".join(_drawing(i, name, rows, scale) for i, (name, rows) in enumerate(_stacks(layers).items()))
    return (
        '<p class="lead soft">Relative error of each stored weight against the source. A cell shows its numbers under '
        f'the pointer; the table has all of them.</p>\n<div class="map"><div class="scroll">{maps}</div>\n'
        f"<div>{_legend(scale) if errors else ''}{_outlines(layers)}{_worst(layers)}</div></div>{_all(layers)}"
    )


def place(name: str) -> Place | None:
    """Where a linear layer sits: its stack, its index there and its kind; None for an embedding or a head.

    ``model.layers.3.mlp.experts.7.up_proj.weight`` is ``("model.layers", 3, "mlp.experts.*.up_proj")``.
    """
    parts = name.removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if at is None or at + 1 == len(parts):
        return None
    kind = ".".join("*" if part.isdecimal() else part for part in parts[at + 1 :])
    return ".".join(parts[:at]), int(parts[at]), kind


def _stacks(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Layers by the stack they belong to; those outside a stack join the one that follows, else the one before."""
    stacks: dict[str, list[Layer]] = {}
    waiting: list[Layer] = []
    for layer in layers:
        found = place(_name(layer))
        if found:
            stacks.setdefault(found[0], []).extend([*waiting, layer])
            waiting = []
        elif stacks and not _is_embedding(layer):
            next(reversed(stacks.values())).append(layer)
        else:
            waiting.append(layer)
    if waiting:
        first = next(iter(stacks), "")
        stacks.setdefault(first, []).extend(waiting)
    return stacks


def _drawing(index: int, stack: str, layers: Sequence[Layer], scale: _Scale) -> str:
    """One stack as SVG: embeddings on top, a row for each index, then what follows the stack."""
    cells: dict[tuple[int, str], list[Layer]] = {}
    for layer in layers:
        if found := place(_name(layer)):
            cells.setdefault(found[1:], []).append(layer)
    names = _column_names(kind for _, kind in cells)
    alone = [layer for layer in layers if place(_name(layer)) is None]
    above, below = ([layer for layer in alone if _is_embedding(layer) is wanted] for wanted in (True, False))
    slant = max((len(name) for name in names.values()), default=0)
    columns = max(len(names), 4) * _WIDTH
    head = 14 + int(4.2 * slant) if slant else 2
    drawn = [_slanted(list(names.values()), head)]
    drawn += [_wide(layer, head + i * _STRIDE, columns, scale) for i, layer in enumerate(above)]
    top = head + len(above) * _STRIDE + 2 * _GAP
    drawn.append(_grid(cells, list(names), top, scale))
    bottom = top + len({row for row, _ in cells}) * _STRIDE + 2 * _GAP
    drawn += [_wide(layer, bottom + i * _STRIDE, columns, scale) for i, layer in enumerate(below)]
    width, height = _MARGIN + columns + max(0, int(4.8 * slant) - _WIDTH // 2), bottom + len(below) * _STRIDE
    title = f"Error by layer in {escape(stack)}" if stack else "Error by layer"
    style = ' class="broad"' if len(names) > _FITTING else ""
    return (
        f'<svg role="img"{style} '
        f'aria-labelledby="map{index}t map{index}d" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title id="map{index}t">{title}</title>'
        f'<desc id="map{index}d">{_spoken(layers)}</desc>{"".join(drawn)}</svg>'
    )


def _grid(cells: Mapping[tuple[int, str], Sequence[Layer]], kinds: Sequence[str], top: int, scale: _Scale) -> str:
    """The numbered rows. Bits stand in the cells where they differ; several layers in one cell show their worst."""
    numbered = len({layer.get("bits") for group in cells.values() for layer in group}) > 1
    line = {row: top + i * _STRIDE for i, row in enumerate(sorted({row for row, _ in cells}))}
    drawn = [f'<text x="{_MARGIN - 8}" y="{y + 11}" text-anchor="end">{row}</text>' for row, y in line.items()]
    for (row, kind), group in cells.items():
        worst = max(group, key=lambda layer: _error(layer) or 0.0)
        label = plain(worst.get("bits", "")) if numbered else ""
        box = (_MARGIN + kinds.index(kind) * _WIDTH, line[row], _WIDTH - _GAP)
        drawn.append(_rectangle(worst, box, scale, label, len(group)))
    return "".join(drawn)


def _column_names(kinds: Iterable[str]) -> dict[str, str]:
    """Each kind with its last component, or all of it where two kinds end alike; kinds of one parent side by side."""
    met = list(dict.fromkeys(kinds))
    parents = list(dict.fromkeys(kind.rpartition(".")[0] for kind in met))
    last = [kind.rpartition(".")[2] for kind in met]
    ordered = sorted(met, key=lambda kind: parents.index(kind.rpartition(".")[0]))
    return {kind: short if last.count(short := kind.rpartition(".")[2]) == 1 else kind for kind in ordered}


def _slanted(names: Sequence[str], head: int) -> str:
    parts = []
    for i, name in enumerate(names):
        x, y = _MARGIN + i * _WIDTH + _WIDTH // 2, head - 6
        parts.append(f'<text x="{x}" y="{y}" transform="rotate(-40 {x} {y})">{escape(name)}</text>')
    return "".join(parts)


def _wide(layer: Layer, y: int, width: int, scale: _Scale) -> str:
    bits = layer.get("bits")
    label = f"{_name(layer)}{f', {plain(bits)} bits' if bits is not None else ''}"
    return _rectangle(layer, (_MARGIN, y, width - _GAP), scale, label, 1)


def _rectangle(layer: Layer, box: tuple[int, int, int], scale: _Scale, label: str, count: int) -> str:
    """A cell with its numbers as the title. ``box``: x, y and width; ``count``: how many layers it stands for."""
    x, y, width = box
    error = _error(layer)
    step = None if error is None or _exact(layer) else scale.step(error)
    style = ("exact" if _exact(layer) else "unmeasured") if step is None else f"h{step}"
    tone = "" if step is None else "high" if step > 3 else "low"
    inset = 0.5 if step is None else 0
    shown = f'<text class="{tone}" x="{x + width / 2}" y="{y + 11}" text-anchor="middle">{escape(label)}</text>'
    many = f" (the worst of {count})" if count > 1 else ""
    return (
        f"<g><title>{_described(layer)}{many}</title>"
        f'<rect class="{style}" x="{x + inset}" y="{y + inset}" width="{width - 2 * inset}" '
        f'height="{_HEIGHT - 2 * inset}"/>{shown if label else ""}</g>'
    )


def _legend(scale: _Scale) -> str:
    width = _STEPS * _WIDTH
    boxes = "".join(
        f'<rect class="h{i}" x="{i * _WIDTH}" y="0" width="{_WIDTH - _GAP}" height="{_HEIGHT}"/>' for i in range(_STEPS)
    )
    low, high = quantity(scale.low), quantity(scale.high)
    return (
        f'<svg class="legend" role="img" aria-label="Colour scale from {low} to {high}" width="{width}" height="34" '
        f'viewBox="0 0 {width} 34">{boxes}<text x="0" y="30">{low} or less</text>'
        f'<text x="{width / 2}" y="30" text-anchor="middle">relative error</text>'
        f'<text x="{width - _GAP}" y="30" text-anchor="end">{high}</text></svg>'
    )


def _outlines(layers: Sequence[Layer]) -> str:
    """What the cells without a colour mean, where there are any."""
    words = [
        "An outlined cell is exact." if any(_exact(layer) for layer in layers) else "",
        f"A dashed cell was {NOT_MEASURED}." if any(_error(layer) is None for layer in layers) else "",
    ]
    said = " ".join(filter(None, words))
    return f'<p class="soft legend">{said}</p>' if said else ""


def _worst(layers: Sequence[Layer]) -> str:
    ranked = sorted((layer for layer in layers if _error(layer)), key=lambda layer: -(_error(layer) or 0.0))
    if not ranked:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_breakable(layer)}</th><td class="n">{escape(plain(layer.get("bits", "")))}</td>'
        f'<td class="n">{quantity(_error(layer))}</td></tr>'
        for layer in ranked[:_WORST]
    )
    head = '<tr><th scope="col">Furthest from the source</th><th scope="col" class="n">Bits</th>'
    return f'<table><thead>{head}<th scope="col" class="n">Error</th></tr></thead><tbody>{rows}</tbody></table>'


def _all(layers: Sequence[Layer]) -> str:
    heads = ("Layer", "Bits", "Block", "Algorithm", "Size", "Error")
    head = "".join(f'<th scope="col"{_number_style(i)}>{name}</th>' for i, name in enumerate(heads))
    return (
        f"<details><summary>All {len(layers)} layers</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="All layers">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, layers))}</tbody></table></div></details>"
    )


def _row(layer: Layer) -> str:
    error = "exact" if _exact(layer) else quantity(_error(layer))
    values = [plain(layer.get(key, "")) for key in ("bits", "block_size", "algorithm")]
    values += [size(number(layer, "bytes")), error]
    cells = "".join(f"<td{_number_style(i)}>{escape(value)}</td>" for i, value in enumerate(values, start=1))
    return f'<tr><th scope="row">{_breakable(layer)}</th>{cells}</tr>'


def _number_style(column: int) -> str:
    return "" if column in (0, 3) else ' class="n"'


def _described(layer: Layer) -> str:
    error = "exact" if _exact(layer) else f"error {quantity(_error(layer))}"
    bits, block = layer.get("bits"), layer.get("block_size")
    stored = [f"{plain(bits)} bits" if bits is not None else "", f"block {plain(block)}" if block is not None else ""]
    return escape(", ".join(filter(None, (_name(layer), error, *stored, plain(layer.get("algorithm") or "")))))


def _spoken(layers: Sequence[Layer]) -> str:
    known = [layer for layer in layers if _error(layer) is not None]
    if not known:
        return f"{len(layers)} layers, {NOT_MEASURED}."
    worst = max(known, key=lambda layer: _error(layer) or 0.0)
    return f"{len(layers)} layers. The largest error is {quantity(_error(worst))} in {escape(_name(worst))}."


def _breakable(layer: Layer) -> str:
    return escape(_name(layer)).replace(".", ".<wbr>")


def _name(layer: Layer) -> str:
    return plain(layer.get("name", ""))


def _is_embedding(layer: Layer) -> bool:
    last = _name(layer).removesuffix(".weight").rpartition(".")[2].lower()
    return "embed" in last or last in ("wte", "wpe", "shared")


def _error(layer: Layer) -> float | None:
    return 0.0 if _exact(layer) else number(layer, "relative_error")


def _exact(layer: Layer) -> bool:
    return layer.get("exact") is True
