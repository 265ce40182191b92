"""Which passes a verb needs for a precision, a device and an algorithm: the one place that knows."""

from __future__ import annotations

from typing import Any

from coldpress.model import Model
from coldpress.target import Target
from coldpress.workflow import Step, Workflow


def press_recipe(options: dict[str, Any]) -> tuple[Step, ...]:
    """``auto-opt`` and ``optimize``: one press of whatever the source is; options left out keep the pass's defaults."""
    return (Step("press", {name: value for name, value in options.items() if value is not None}),)


def complete(workflow: Workflow, model: Model) -> tuple[Step, ...]:
    """The workflow's passes, after those that bring the model into a format the first of them accepts."""
    steps = workflow.passes
    if model.format == "gguf" and not (steps and "gguf" in type(steps[0].make()).accepts):
        return (Step("unpack_gguf"), *steps)
    return steps


def metrics_for(model: Model, target: Target) -> tuple[str, ...]:
    """What is measured of a finished model when nothing else is asked for: its size, and how it generates, if it does."""
    generates = (model.path / "genai_config.json").exists() and target.is_here
    return ("size", "generation", "memory") if generates else ("size",)
