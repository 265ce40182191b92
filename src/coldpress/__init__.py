"""Press a PyTorch, Hugging Face, GGUF or ONNX model into the best ONNX model for a target, verified and measured."""

from __future__ import annotations

import importlib
from typing import Any

from coldpress import environment

__version__ = "0.1.0"

environment.prepare()

#: public name -> module that holds it; loaded on first use, so that ``import coldpress`` costs nothing
_HOMES = {
    "ColdpressError": "coldpress.errors",
    "Context": "coldpress.parts",
    "Conversation": "coldpress.serving.chat",
    "GraphContext": "coldpress.parts.graph_pass",
    "GraphPass": "coldpress.parts.graph_pass",
    "Metric": "coldpress.parts",
    "Model": "coldpress.models.model",
    "Pass": "coldpress.parts",
    "Planned": "coldpress.models.planned",
    "Provenance": "coldpress.models.provenance",
    "Report": "coldpress.runs.engine",
    "Rewritten": "coldpress.parts.graph_pass",
    "Step": "coldpress.workflow",
    "Store": "coldpress.jobs.store",
    "Target": "coldpress.target",
    "Value": "coldpress.parts",
    "Verdict": "coldpress.runs.verification",
    "Verify": "coldpress.workflow",
    "Workflow": "coldpress.workflow",
    "auto_opt": "coldpress.api",
    "benchmark": "coldpress.api",
    "chat": "coldpress.api",
    "evaluate": "coldpress.api",
    "finetune": "coldpress.api",
    "capture_onnx_graph": "coldpress.api",
    "optimize": "coldpress.api",
    "plan": "coldpress.api",
    "quantize": "coldpress.api",
    "run": "coldpress.api",
    "run_pass": "coldpress.api",
    "verify": "coldpress.api",
}

__all__ = [
    "ColdpressError",
    "Context",
    "Conversation",
    "GraphContext",
    "GraphPass",
    "Metric",
    "Model",
    "Pass",
    "Planned",
    "Provenance",
    "Report",
    "Rewritten",
    "Step",
    "Store",
    "Target",
    "Value",
    "Verdict",
    "Verify",
    "Workflow",
    "__version__",
    "auto_opt",
    "benchmark",
    "capture_onnx_graph",
    "chat",
    "evaluate",
    "finetune",
    "optimize",
    "plan",
    "quantize",
    "run",
    "run_pass",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'coldpress' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
