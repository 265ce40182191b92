"""Adapters as PEFT has them: which configuration a method becomes, on which modules, and how one is put on a
network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.checkpoint import Checkpoint
from coldpress.networks.routers import is_router

METHODS = ("lora", "qlora", "dora", "loha", "lokr", "loftq")
#: methods whose adapters are two thin matrices; the others have no dropout of their input
LOW_RANK = ("lora", "qlora", "dora", "loftq")
_USUAL_DROPOUT = 0.05
_ATTENTION = ("q_proj", "k_proj", "v_proj")
#: layers that some architectures have as one and others as several
_JOINED = {
    "qkv_proj": _ATTENTION,
    "query_key_value": _ATTENTION,
    "c_attn": _ATTENTION,
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass(frozen=True)
class Adapter:
    """What is trained. ``alpha`` over ``rank`` scales it; ``dropout`` None: the usual one where the method has one.

    ``target_modules``: names of linear layers or the ends of such, or all of the decoder for none. ``modules_to_save``:
    modules that are trained whole. ``more``: further fields of PEFT's configuration.
    """

    method: str = "lora"
    rank: int = 64
    alpha: float = 16
    dropout: float | None = None
    target_modules: Sequence[str] = ()
    modules_to_save: Sequence[str] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ColdpressError(f"lora_r is {self.rank}; at least 1 is needed", hint="8 to 64 are usual")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ColdpressError(f"lora_dropout is {self.dropout:g}; it is a share below 1")
        if self.dropout is not None and self.method not in LOW_RANK:
            raise ColdpressError(
                f"lora_dropout has no effect with {self.method}",
                hint="use rank_dropout or module_dropout, or leave it out",
            )

    def config(self, model: Any) -> Any:
        """PEFT's configuration for a network. ColdpressError for modules that the network does not have."""
        import peft

        shared = {
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "target_modules": self._targets(model),
            "modules_to_save": self._saved(model),
            **self.more,
        }
        alpha: Any = int(self.alpha) if self.alpha == int(self.alpha) else self.alpha
        if self.method == "loha":
            return peft.LoHaConfig(alpha=alpha, **shared)
        if self.method == "lokr":
            return peft.LoKrConfig(alpha=alpha, **shared)
        dropout = _USUAL_DROPOUT if self.dropout is None else self.dropout
        return peft.LoraConfig(
            lora_alpha=alpha, lora_dropout=dropout, bias="none", use_dora=self.method == "dora", **shared
        )

    def put_on(self, model: Any) -> Any:
        """PEFT's wrapper around ``model``, which gets the adapter inside: float32, trained; all else stays frozen."""
        import peft

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks transformers for what is called otherwise now
            wrapped = peft.get_peft_model(model, self.config(model))
        for module in wrapped.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False  # autocast does it, without a float32 copy of each input
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return wrapped

    def _targets(self, model: Any) -> list[str]:
        known = linears_of(model)
        if not self.target_modules:
            return sorted({name.rpartition(".")[2] for name in known})
        head = _name_of(model, model.get_output_embeddings())
        _refuse_unknown("target_modules", self.target_modules, [*known, *filter(None, [head])])
        return list(self.target_modules)

    def _saved(self, model: Any) -> list[str] | None:
        names = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
        _refuse_unknown("modules_to_save", self.modules_to_save, names)
        return list(self.modules_to_save) or None


def check_targets(folder: Path, wanted: Sequence[str], trust_remote_code: bool) -> None:
    """Raise ColdpressError for ``wanted`` target modules that the model in a folder does not have.

    Names of stored tensors tell of nearly all models; those that store other names are built, without their weights.
    """
    stored = {tensor.rpartition(".")[0] for tensor in Checkpoint(folder).tensors}
    if all(any(_is_meant(name, module) for module in stored) for name in wanted):
        return
    from coldpress.networks.empty import empty_model
    from coldpress.networks.shards import Shards

    network, _ = empty_model(folder, Shards(folder), trust_remote_code)
    Adapter(target_modules=wanted)._targets(network)


def linears_of(model: Any) -> list[str]:
    """The linear layers of the decoder by name: not the head, and none that routes tokens to experts."""
    from torch import nn

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or _is_conv1d(module)) and module is not head and not is_router(name)
    ]


def save(model: Any, folder: Path, base_name: str) -> None:
    """Write the adapter of PEFT's wrapper as a folder that PEFT loads; it says that it belongs to ``base_name``.

    PEFT would write the path of the base on this machine, and sets in an order that changes from run to run.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, name, sorted(value))
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form of a model card, not filled in


def _refuse_unknown(what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    ends = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
    for name in wanted:
        if not any(_is_meant(name, one) for one in known):
            raise ColdpressError(
                f"{what}: this model has no module '{name}'; it has {', '.join(ends)}",
                hint=_joined_otherwise(name, ends) or did_you_mean(name, ends),
            )


def _is_meant(name: str, module: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _joined_otherwise(name: str, ends: Sequence[str]) -> str | None:
    """A hint where a model has in several layers what others have in one, or the other way round."""
    for whole, parts in _JOINED.items():
        if name == whole and all(part in ends for part in parts):
            return f"here these are {len(parts)} layers: --target_modules {','.join(parts)}"
        if name in parts and whole in ends:
            return f"here it is a part of {whole}"
    return None


def _name_of(model: Any, wanted: Any) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _is_conv1d(module: Any) -> bool:
    """Whether it is GPT-2's kind of linear layer, whose weight is stored the other way round."""
    return type(module).__name__ == "Conv1D"
