"""Which exporter captures a model: a function of its configuration alone.

An exporter is a module here with a function ``capture(Request) -> Captured``. mobius writes graphs that are fused for
the runtime, decoders with their caches among them, of the architectures that it knows and computes right;
``torch_export`` traces any other network whose task can be traced, and every encoder-decoder: in the decoders of mobius
each token computes anew what it reads of the encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress.errors import ColdpressError
from coldpress.graphs.trust import is_swept, require_right
from coldpress.parts.task import task_of_settings

if TYPE_CHECKING:
    from coldpress.graphs.capture.captured import Captured, Request

MOBIUS, TORCH_EXPORT = "mobius", "torch_export"


def exporter_of(folder: Path) -> str:
    """The exporter for the model in a Hugging Face folder."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = task_of_settings(settings)
    if task is None or not task.is_traced:
        return MOBIUS
    return TORCH_EXPORT if settings.get("is_encoder_decoder") or not is_swept(settings) else MOBIUS


def chosen(folder: Path, asked: str | None) -> str:
    """The exporter for a model, or the one that is asked for; ColdpressError where that cannot do it."""
    own = exporter_of(folder)
    if asked != TORCH_EXPORT or own == TORCH_EXPORT:
        return asked or own
    task = task_of_settings(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if task is None or not task.is_traced:
        raise ColdpressError(
            "torch.export writes no caches, so a model that generates is captured by mobius",
            hint="leave the exporter out",
        )
    return asked


def require_captured(folder: Path, exporter: str, *, trust_remote_code: bool = False) -> None:
    """Refuse, before any work, a model whose graph would not compute what transformers computes."""
    if exporter == MOBIUS:
        require_right(folder, trust_remote_code=trust_remote_code)


def capture(exporter: str, request: Request) -> Captured:
    """Let an exporter capture a model; to be called in a worker process that was started for it."""
    if exporter == TORCH_EXPORT:
        from coldpress.graphs.capture.torch_export import capture as by_torch

        return by_torch(request)
    from coldpress.graphs.capture.mobius.capture import capture as by_mobius

    return by_mobius(request)
