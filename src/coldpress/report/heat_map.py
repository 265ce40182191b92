"""Where the error sits: one cell for each linear layer, rows in the order of the network, columns by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from coldpress.report import NOT_MEASURED, number, plain, quantity, size
from coldpress.report.charts import MEASURED, NAMED, ORDERED, STEPS, chart

_WORST = 6
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

    @property
    def middle(self) -> float:
        """From here on a colour is dark on paper, and light in the dark."""
        return self.low + 4 / len(STEPS) * (self.high - self.low)

    def colours(self) -> dict[str, Any]:
        """The channel of a chart."""
        scale = {"type": "quantize", "domain": [self.low, self.high or 1.0], "range": STEPS}
        legend = {"format": ".2~g", "gradientLength": 240}
        without = {"condition": {"test": "!isValid(datum.error)", "value": "transparent"}}
        return {
            **without,
            "field": "error",
            "type": MEASURED,
            "title": "relative error",
            "scale": scale,
            "legend": legend,
        }


def heat_map(layers: Sequence[Layer]) -> str:
    """The map, its scale, the worst layers and a table of all of them, as HTML; empty without layers."""
    if not layers:
        return ""
    errors = [error for layer in layers if (error := _error(layer)) is not None and not _exact(layer)]
    scale = _Scale.of(errors)
    maps = "".join(_drawn(name, rows, scale) for name, rows in _stacks(layers).items())
    return (
        '<p class="lead soft">Relative error of each stored weight against the source. A cell tells its numbers under '
        f'the pointer; the table has all of them.</p>\n<div class="map"><div>{maps}</div>\n'
        f"<div>{_without_colour(layers)}{_worst(layers)}</div></div>{_all(layers)}"
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


def _drawn(stack: str, layers: Sequence[Layer], scale: _Scale) -> str:
    """One stack as a chart: embeddings on top, a row for each index, then what follows the stack."""
    cells: dict[tuple[int, str], list[Layer]] = {}
    for layer in layers:
        if found := place(_name(layer)):
            cells.setdefault(found[1:], []).append(layer)
    alone = [layer for layer in layers if place(_name(layer)) is None]
    above, below = ([layer for layer in alone if _is_embedding(layer) is wanted] for wanted in (True, False))
    names = _column_names(kind for _, kind in cells)
    rows = [*map(_short, above), *map(str, sorted({row for row, _ in cells})), *map(_short, below)]
    values = [_cell(group, str(row), names[kind]) for (row, kind), group in cells.items()]
    wide = [_cell([layer], _short(layer), "") for layer in alone]
    y = {"field": "row", "type": ORDERED, "sort": rows, "scale": {"domain": rows}, "title": stack or None}
    x = {"field": "kind", "type": NAMED, "sort": list(names.values()), "title": None, "axis": {"labelAngle": -40}}
    layered = [
        {"data": {"values": cells_of}, "mark": {"type": "rect", "stroke": "var(--paper)"},
         "encoding": {"color": scale.colours(), "tooltip": _TOOLTIP, **across}}
        for cells_of, across in ((values, {"x": x}), (wide, {})) if cells_of
    ]  # fmt: skip
    if len({value["bits"] for value in values}) > 1:
        on_dark = {"condition": {"test": f"datum.error > {scale.middle}", "value": "var(--on-high)"}}
        text = {"text": {"field": "bits"}, "x": x, "color": {**on_dark, "value": "var(--on-low)"}}
        mark = {"type": "text", "fontSize": 10}
        layered.append({"data": {"values": values}, "mark": mark, "encoding": {**text, "tooltip": _TOOLTIP}})
    spec = {"height": {"step": _ROW_HEIGHT}, "encoding": {"y": y}, "layer": layered}
    return chart(spec, f"Error by layer in {stack}. {_spoken(layers)}" if stack else _spoken(layers))


_ROW_HEIGHT = 17
_TOOLTIP = [
    {"field": field, "title": title}
    for field, title in (
        ("name", "layer"),
        ("said", "error"),
        ("bits", "bits"),
        ("block", "block"),
        ("algorithm", "algorithm"),
        ("of", "the worst of"),
    )
]


def _cell(group: Sequence[Layer], row: str, kind: str) -> dict[str, Any]:
    """What is drawn and told of one place; several layers in it show their worst. No error is one that has no
    colour."""
    worst = max(group, key=lambda layer: _error(layer) or 0.0)
    return {
        "row": row,
        "kind": kind,
        "name": _name(worst),
        "error": None if _exact(worst) else _error(worst),
        "said": _said(worst),
        "bits": plain(worst.get("bits", "")),
        "block": plain(worst.get("block_size") or ""),
        "algorithm": plain(worst.get("algorithm") or ""),
        "of": len(group),
    }


def _said(layer: Layer) -> str:
    return "exact" if _exact(layer) else quantity(_error(layer))


def _short(layer: Layer) -> str:
    """The last component of a name that says something."""
    return _name(layer).removesuffix(".weight").rpartition(".")[2]


def _column_names(kinds: Iterable[str]) -> dict[str, str]:
    """Each kind with its last component, or all of it where two kinds end alike; kinds of one parent side by side."""
    met = list(dict.fromkeys(kinds))
    parents = list(dict.fromkeys(kind.rpartition(".")[0] for kind in met))
    last = [kind.rpartition(".")[2] for kind in met]
    ordered = sorted(met, key=lambda kind: parents.index(kind.rpartition(".")[0]))
    return {kind: short if last.count(short := kind.rpartition(".")[2]) == 1 else kind for kind in ordered}


def _without_colour(layers: Sequence[Layer]) -> str:
    """What the cells without a colour mean, where there are any."""
    words = [
        "exact" if any(_exact(layer) for layer in layers) else "",
        NOT_MEASURED if any(_error(layer) is None for layer in layers) else "",
    ]
    said = " or ".join(filter(None, words))
    return f'<p class="soft">A cell without a colour is {said}.</p>' if said else ""


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
    values = [plain(layer.get(key, "")) for key in ("bits", "block_size", "algorithm")]
    values += [size(number(layer, "bytes")), _said(layer)]
    cells = "".join(f"<td{_number_style(i)}>{escape(value)}</td>" for i, value in enumerate(values, start=1))
    return f'<tr><th scope="row">{_breakable(layer)}</th>{cells}</tr>'


def _number_style(column: int) -> str:
    return "" if column in (0, 3) else ' class="n"'


def _spoken(layers: Sequence[Layer]) -> str:
    known = [layer for layer in layers if _error(layer) is not None]
    if not known:
        return f"{len(layers)} layers, {NOT_MEASURED}."
    worst = max(known, key=lambda layer: _error(layer) or 0.0)
    return f"{len(layers)} layers. The largest error is {quantity(_error(worst))} in {_name(worst)}."


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
