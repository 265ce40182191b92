"""What a calibration found: the error of each layer's output, and how it came about; quality on each text."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from coldpress.report import Report, entries, number, plain, quantity, section, share
from coldpress.report.experts import tokens_by_expert

_COLUMNS = ("Layer", "Bits", "Tokens", "Output error", "Plain rounding", "AWQ", "Damping", "Remark")


def calibration(report: Report) -> str:
    """The section's HTML; empty for a run without calibration."""
    found = section(report, "calibration")
    layers = [layer for layer in entries(found, "layers") if _has_inputs(layer)]
    if not layers:
        return ""
    tokens, windows = number(found, "tokens"), number(found, "windows")
    text = f"{quantity(tokens)} tokens in {quantity(windows)} windows of {escape(plain(found.get('text', '')))}"
    text += ", each counted by what it matters for the answers" if found.get("weighed") else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(layer) for layer in layers)
    return (
        f'<p class="lead soft">Relative error of each layer\'s output on {text}: what the rounding of the weight'
        " does to "
        "what the layer gives, beside what plain rounding would have done.</p>\n"
        f"<details><summary>{len(layers)} layers, {share(_mean(layers, 'output_error'))} on average where plain"
        " rounding has "
        f"{share(_mean(layers, 'rtn_output_error'))}</summary><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></details>{tokens_by_expert(layers)}"
    )


def _has_inputs(layer: Mapping[str, Any]) -> bool:
    """Whether inputs were watched: an expert counts that no token came to, a table of embeddings does not."""
    return number(layer, "output_error") is not None or number(layer, "tokens") is not None


def texts(report: Report) -> str:
    """Quality on each evaluation text, as an HTML table; empty when there is only one number."""
    found = section(section(report, "quality"), "texts")
    if len(found) < 2:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(plain(name))}</th><td'
        f' class="n">{quantity(number(values, "source_perplexity"))}</td><td'
        f' class="n">{quantity(number(values, "perplexity"))}</td><td'
        f' class="n">{quantity(number(values, "kl"))}</td></tr>'
        for name, values in found.items()
        if isinstance(values, Mapping)
    )
    head = '<th scope="col">Text</th><th scope="col" class="n">Perplexity of the source</th>'
    head += '<th scope="col" class="n">Of this model</th><th scope="col" class="n">KL divergence</th>'
    return (
        "<table><caption>By text, none of which any pass has"
        f" seen.</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _mean(layers: list[Mapping[str, Any]], key: str) -> float:
    values = [value for layer in layers if (value := number(layer, key)) is not None]
    return sum(values) / max(1, len(values))


def _row(layer: Mapping[str, Any]) -> str:
    alpha, damp = number(layer, "alpha"), number(layer, "damp")
    tokens = number(layer, "tokens")
    cells = (
        f"{number(layer, 'bits'):.0f}",
        "" if tokens is None else quantity(tokens),
        share(number(layer, "output_error")),
        share(number(layer, "rtn_output_error")),
        "" if alpha is None else f"{alpha:g}",
        "" if damp is None else f"{damp:g}",
    )
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return (
        f'<tr><th scope="row">{escape(plain(layer.get("name", "")))}</th>{numbers}'
        f"<td>{escape(plain(layer.get('fallback') or ''))}</td></tr>"
    )
