"""Another Python environment that has ONNX Runtime alone: metrics run there.

Requests are read and checked; they run later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coldpress.jobs.system import System
from coldpress.parts import option


@dataclass(frozen=True)
class IsolatedOrt(System):
    """The folder of a Python with ONNX Runtime, and what its processes find in their environment."""

    title: ClassVar[str] = "another environment with ONNX Runtime"
    is_ready: ClassVar[bool] = False

    path: str | None = option("folder of the environment's python", None)
    variables: dict[str, str] = option("environment variables", dict)
    prepend_to_path: tuple[str, ...] = option("folders in front of PATH", ())
    hf_token: bool = option("give jobs the hub's token", False)
