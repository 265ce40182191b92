"""How many tokens of the calibration text came to each expert: what its rounding could be fitted to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from coldpress.report import number, plain, quantity

_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.")
_COLUMNS = ("Fewest", "Median", "Most", "Without any")
_WIDTH, _HEIGHT, _STEPS = 640, 14, 7


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
    rows = "".join(_row(name, experts, most) for name, experts in mixtures.items())
    return (
        '<table class="tokens"><caption>Calibration tokens by expert. The darker a cell, the more tokens came to the'
        ' expert; a dashed one got none, and was rounded without data.</caption><thead><tr><th scope="col">Experts'
        f' of</th>{head}<th scope="col">Each</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _row(name: str, experts: Mapping[int, float], most: float) -> str:
    counts = list(experts.values())
    figures = (min(counts), median(counts), max(counts), sum(count == 0 for count in counts))
    cells = "".join(f'<td class="n">{quantity(figure)}</td>' for figure in figures)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{_strip(experts, most)}</td></tr>'


def _strip(experts: Mapping[int, float], most: float) -> str:
    width = _WIDTH / max(len(experts), 40)
    cells = "".join(
        f"<g><title>expert {place}: {quantity(tokens)} tokens</title>"
        f'<rect class="{_colour(tokens, most)}" x="{index * width + 0.5:.1f}" y="0.5" width="{width - 1:.1f}" '
        f'height="{_HEIGHT - 1}"/></g>'
        for index, (place, tokens) in enumerate(sorted(experts.items()))
    )
    return (
        f'<svg role="img" aria-label="Tokens of {len(experts)} experts" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' preserveAspectRatio="none">{cells}</svg>'
    )


def _colour(tokens: float, most: float) -> str:
    return f"h{min(_STEPS - 1, int(_STEPS * tokens / most))}" if tokens else "unmeasured"
