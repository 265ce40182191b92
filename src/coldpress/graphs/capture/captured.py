"""What is asked of a capture, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.models.checkpoint import Span


@dataclass(frozen=True)
class Request:
    """A graph of the model in ``folder`` that computes in ``dtype`` (float32, float16, bfloat16).

    ``provider``: the execution provider by its short name (``cpu``, ``cuda``, ...). ``scratch``: a folder for tensors
    that have to be computed.
    """

    folder: Path
    provider: str
    dtype: str
    scratch: Path
    trust_remote_code: bool = False


@dataclass
class Captured:
    """``components``: graphs (`onnx_ir.Model`) by name. ``sources``: the checkpoint's span for each initializer.

    ``config``: the settings that the graphs were made by. ``hf_config``: config.json. ``warnings``: what the reader of
    a report should know of the checkpoint.
    """

    components: dict[str, Any]
    sources: dict[str, Span]
    config: Any
    hf_config: dict[str, Any]
    warnings: list[str]
