"""A Hugging Face folder as transformers itself loads it: which values it gives each parameter, and what it will not
load.

The weights are loaded in the type that they are stored in, so that they stay mapped files, and take no memory; whoever
runs the network casts them module by module. Nothing here uses coldpress' own reading of files, which it is there to
check.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import WORK_FAILED, ColdpressError

if TYPE_CHECKING:
    import torch

_SHOWN = 5
#: keeps transformers from casting tensors on many threads, which would hold as many copies
_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"


class CannotLoad(Exception):
    """transformers has no way to load a folder here; the message says why."""


@dataclass(frozen=True)
class Loaded:
    """``network``: as transformers made it. ``values``: its parameters and buffers by name, floats of any type."""

    network: Any
    values: Mapping[str, torch.Tensor]

    @property
    def is_plain_float32(self) -> bool:
        """Whether the network can run as it is: all floats are float32 and no layer was quantized."""
        wide = all(
            str(tensor.dtype) == "torch.float32" for tensor in self.values.values() if tensor.is_floating_point()
        )
        return wide and getattr(self.network, "hf_quantizer", None) is None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        return self.values[name]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.values[name][start:stop].float()


def load(folder: Path, dtype: str, trust_remote_code: bool = False, config: Any = None) -> Loaded:
    """Load a folder's causal language model with transformers, its floats as ``dtype``.

    ``config``: another configuration than the folder's, such as one with fewer layers. Quantized layers get the values
    that transformers computes of them, in float32. Raises `CannotLoad`, and ColdpressError for a checkpoint that lacks
    a parameter, which transformers would make up.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options = {"config": config} if config is not None else {}
    with _quietly():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
            network, found = loaded
            network.eval()
            if getattr(network, "hf_quantizer", None) is not None:
                with torch.inference_mode():
                    network(
                        input_ids=torch.zeros(1, 1, dtype=torch.long)
                    )  # compressed-tensors unpacks when it first runs
        except (ImportError, ValueError, OSError, RuntimeError, LookupError, AttributeError, TypeError) as error:
            raise CannotLoad(" ".join(str(error).split())[:300]) from error
    _require_complete(folder, found)
    return Loaded(network, {name: tensor.detach() for name, tensor in network.state_dict(keep_vars=True).items()})


def _require_complete(folder: Path, found: Mapping[str, Any]) -> None:
    missing, other = sorted(found["missing_keys"]), sorted(str(key[0]) for key in found["mismatched_keys"])
    for names, what in ((missing, "no tensor"), (other, "a tensor of another shape")):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ColdpressError(
                f"{folder}: transformers finds {what} for {', '.join(names[:_SHOWN])}{more}, and would make up values",
                hint="is config.json that of these weights?",
                exit_code=WORK_FAILED,
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports: what matters of them is said here."""
    from transformers.utils import logging

    level, bars, before = logging.get_verbosity(), logging.is_progress_bar_enabled(), os.environ.get(_ONE_BY_ONE)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ[_ONE_BY_ONE] = "1"
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        os.environ.pop(_ONE_BY_ONE)
        if before is not None:
            os.environ[_ONE_BY_ONE] = before
