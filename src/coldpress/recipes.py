"""Which passes a verb needs for a precision, a device and an algorithm: the one place that knows."""

from __future__ import annotations

from typing import Any

from coldpress.model import Model
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


def metrics_for(workflow: Workflow, model: Model) -> tuple[str, ...]:
    """What is measured of a finished model: what the workflow names, else its size, and how it generates.

    A model that is not verified is not run at all.
    """
    if workflow.metrics is not None:
        return workflow.metrics
    runs = (model.path / "genai_config.json").exists() and workflow.target.is_here and workflow.verify.enabled
    return ("size", "generation", "memory") if runs else ("size",)
