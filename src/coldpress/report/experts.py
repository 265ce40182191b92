"""How many tokens of the calibration text came to each expert: what its rounding could be fitted to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from coldpress.report import number, plain, quantity
from coldpress.report.charts import MEASURED, ORDERED, STEPS, chart

_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.")
_COLUMNS = ("Fewest", "Median", "Most", "Without any")


def tokens_by_expert(layers: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each layer that has experts, as HTML; empty for a model without."""
    mixtures: dict[str, dict[int, float]] = {}
    for layer in layers:
        found, tokens = _EXPERT.match(plain(layer.get("name", ""))), number(layer, "tokens")
        if found and tokens is not None:
            mixtures.setdefault(found[1], {})[int(found[2])] = tokens
    if not mixtures:
        return ""
    head = "".join(f'<th scope="col" class="n">{name}</th>' for name in _COLUMNS)
    most = max(tokens for experts in mixtures.values() for tokens in experts.values())
    rows = "".join(_row(name, experts) for name, experts in mixtures.items())
    return (
        '<div class="scroll"><table class="tokens"><caption>Calibration tokens by expert. One that got none was rounded'
        f' without data.</caption><thead><tr><th scope="col">Experts of</th>{head}</tr></thead><tbody>{rows}</tbody>'
        f"</table></div>{_chart(mixtures, most)}"
    )


def _row(name: str, experts: Mapping[int, float]) -> str:
    counts = list(experts.values())
    figures = (min(counts), median(counts), max(counts), sum(count == 0 for count in counts))
    cells = "".join(f'<td class="n">{quantity(figure)}</td>' for figure in figures)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _chart(mixtures: Mapping[str, Mapping[int, float]], most: float) -> str:
    """A row for each layer, a cell for each expert; one without tokens has no colour."""
    values = [
        {"layer": _index(name), "name": name, "expert": place, "tokens": tokens}
        for name, experts in mixtures.items()
        for place, tokens in experts.items()
    ]
    scale = {"type": "quantize", "domain": [0, most], "range": STEPS}
    without = {"condition": {"test": "datum.tokens === 0", "value": "transparent"}}
    encoding = {
        "y": {"field": "layer", "type": ORDERED, "sort": [*map(_index, mixtures)], "title": "layer"},
        "x": {"field": "expert", "type": ORDERED, "title": "expert", "axis": {"labelOverlap": True, "labelAngle": 0}},
        "color": {**without, "field": "tokens", "type": MEASURED, "title": "tokens", "scale": scale},
        "tooltip": [{"field": "name", "title": "experts of"}, {"field": "expert"}, {"field": "tokens"}],
    }
    spec = {"data": {"values": values}, "height": {"step": 17}, "mark": "rect", "encoding": encoding}
    return chart(spec, f"Calibration tokens of {len(values)} experts")


def _index(name: str) -> str:
    """The number of a layer, or its name where it has none."""
    return next((part for part in name.split(".") if part.isdecimal()), name)
