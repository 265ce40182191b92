"""A quantized folder as a plain network: whole, with the values that its codes stand for, or without memory, a tensor
at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError
from coldpress.networks.empty import config_of, empty_model, tied_names
from coldpress.networks.shards import Shards

if TYPE_CHECKING:
    import torch


def load_dense(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The causal language model of a quantized folder as if it were none: floats of a type, exact but for its
    rounding."""
    shards = Shards(folder)
    kind = type(empty_model(folder, shards, trust_remote_code)[0])
    values = {name: shards.tensor(name).to(dtype) for name in shards.names()}
    config = config_of(folder, trust_remote_code)
    return kind.from_pretrained(None, config=config, state_dict=values, dtype=dtype)


@dataclass(frozen=True)
class Blueprint:
    """A network whose parameters take no memory, and where in the folder they lie.

    ``names``: parameter -> stored tensor. ``tied``: parameter -> the one that it shares its tensor with.
    """

    network: Any
    names: Mapping[str, str]
    tied: Mapping[str, str]
    shards: Shards

    @classmethod
    def of(cls, folder: Path, trust_remote_code: bool = False) -> Blueprint:
        """Raises ColdpressError where transformers makes some parameter out of several stored tensors."""
        shards = Shards(folder)
        network, names = empty_model(folder, shards, trust_remote_code)
        if names is None:
            raise ColdpressError(
                f"the weights of {type(network).__name__} in {folder} are not told apart by name: transformers computes"
                " some of them from several stored tensors"
            )
        return cls(network, names, tied_names(network), shards)
