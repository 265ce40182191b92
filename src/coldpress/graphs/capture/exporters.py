"""Which exporter captures a model: a function of its configuration alone.

An exporter is a module here with a function ``capture(Request) -> Captured``. mobius writes graphs that are fused for
the runtime, decoders with their caches among them, of the architectures that it knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coldpress.graphs.trust import require_right

if TYPE_CHECKING:
    from coldpress.graphs.capture.captured import Captured, Request

MOBIUS = "mobius"


def exporter_of(folder: Path) -> str:
    """The exporter for the model in a Hugging Face folder."""
    return MOBIUS


def require_captured(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse, before any work, a model whose graph would not compute what transformers computes."""
    require_right(folder, trust_remote_code=trust_remote_code)


def capture(exporter: str, request: Request) -> Captured:
    """Let an exporter capture a model; to be called in a worker process."""
    from coldpress.graphs.capture.mobius.capture import capture as by_mobius

    return {MOBIUS: by_mobius}[exporter](request)
