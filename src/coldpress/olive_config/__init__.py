"""Olive's configurations, of today's schema and older ones, as workflows.

What they say is translated by tables (``passes.yaml``, ``keys.yaml``); what has no effect here becomes a note, and what cannot
be expressed a problem. Nothing is passed over. What a configuration leaves out has coldpress's default, not Olive's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldpress.schema import Misfit

_OLIVES = ("input_model", "engine", "systems", "evaluators", "data_configs", "search_strategy", "pass_flows")


def is_olive(data: Mapping[str, Any]) -> bool:
    """Whether plain data is a configuration of Olive's."""
    return "model" not in data and (any(key in data for key in _OLIVES) or isinstance(data.get("passes"), Mapping))


@dataclass(frozen=True)
class Translation:
    """A configuration as a workflow: plain data, notes on what differs, and problems that keep it from running."""

    workflow: dict[str, Any]
    notes: list[str]
    problems: list[Misfit]

    def raise_problems(self) -> None:
        """Raise the first problem, and say how many there are."""
        if not self.problems:
            return
        first, more = self.problems[0], len(self.problems) - 1
        told = f" (and {more} more; `coldpress migrate` lists them)" if more else ""
        raise Misfit(first.place, f"{first.problem}{told}", first.hint)


def translate(data: Mapping[str, Any]) -> Translation:
    """Translate a configuration whole; never raises for what is in it."""
    from coldpress.olive_config.translation import translated

    return translated(data)
