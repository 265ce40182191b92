"""Charts of a page: Vega-Lite specifications, drawn by the library that the page carries.

Colours are names of the page's style sheet, so a chart is light, dark or on paper with the page, without being drawn
anew. Expressions in a chart are interpreted (``ast``), so a page needs no leave to evaluate code.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from coldpress.report.library import library

Spec = Mapping[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
_GUIDE = {
    "labelFont": _FONT,
    "titleFont": _FONT,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelColor": "var(--soft)",
    "titleColor": "var(--ink)",
}
_THEME = {
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {**_GUIDE, "gridColor": "var(--rule)", "domainColor": "var(--quiet)", "tickColor": "var(--quiet)"},
    "legend": {**_GUIDE, "orient": "bottom", "symbolStrokeColor": "var(--mark)"},
    "text": {"font": _FONT, "fontSize": 12, "fill": "var(--ink)"},
    "bar": {"fill": "var(--mark)"},
}
#: colours of a scale from little to much
STEPS = tuple(f"var(--h{index})" for index in range(7))
MEASURED, ORDERED, NAMED = "quantitative", "ordinal", "nominal"


def chart(spec: Spec, title: str) -> str:
    """The place of a chart in a page, as wide as the page allows; ``title`` is what is read out."""
    whole = {
        "$schema": _SCHEMA,
        "description": title,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _THEME,
        **spec,
    }
    drawn = escape(json.dumps(whole, separators=(",", ":")))
    return f'<div class="chart" role="img" aria-label="{escape(title)}" data-spec="{drawn}"></div>'


def bars(rows: Sequence[tuple[str, float, str]], axis: str, title: str) -> str:
    """Horizontal bars. A row: name, length, value in words; ``axis``: what the length is, with its unit."""
    values = [{"name": name, "length": length, "said": said} for name, length, said in rows]
    longest = max(length for _, length, _ in rows)
    encoding = {
        "y": {"field": "name", "type": NAMED, "sort": None, "title": None, "axis": {"labelLimit": 130}},
        "x": {
            "field": "length",
            "type": MEASURED,
            "title": axis,
            "axis": {"tickCount": 4, "format": "~s"},
            "scale": {"domain": [0, 1.25 * longest or 1], "nice": False},
        },
        "tooltip": [{"field": "name", "title": "of"}, {"field": "said", "title": axis}],
    }
    spoken = f"{title}: {', '.join(f'{name} {said}' for name, _, said in rows)}"
    layers = [
        {"mark": {"type": "bar", "height": {"band": 0.7}}},
        {"mark": {"type": "text", "align": "left", "dx": 5}, "encoding": {"text": {"field": "said"}}},
    ]
    return chart({"data": {"values": values}, "height": {"step": 26}, "encoding": encoding, "layer": layers}, spoken)


def scripts(page: str) -> tuple[str, str]:
    """What a page with charts or tables that sort ends with, and the part of a content security policy that lets just
    that run; both empty for a page without."""
    parts = [library()] if "data-spec=" in page else []
    if parts or 'class="sortable"' in page:
        parts.append(Path(__file__).with_name("page.js").read_text(encoding="utf-8"))
    hashes = " ".join(f"'sha256-{_digest(part)}'" for part in parts)
    return "".join(f"<script>{part}</script>\n" for part in parts), f"; script-src {hashes}" if parts else ""


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
