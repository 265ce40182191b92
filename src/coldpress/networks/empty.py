"""The network of a Hugging Face folder built without memory, and where in the folder each of its parameters lies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.packed.spans import plain_tensors
from coldpress.models.ties import has_own_head
from coldpress.networks.shards import Shards

#: what is said when a configuration is contradictory
COMPLETE = "is config.json complete, and that of these weights?"


def config_of(folder: Path, trust_remote_code: bool) -> Any:
    """The configuration of the folder's model, as if no layer was quantized; heads are tied where the weights are."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    own_head = not getattr(config, "is_encoder_decoder", False) and has_own_head(plain_tensors(folder))
    for part in parts:
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
        if own_head and part is not None:
            part.tie_word_embeddings = False
    return config


def empty_model(
    folder: Path, shards: Shards, trust_remote_code: bool, config: Any = None
) -> tuple[Any, dict[str, str] | None]:
    """The folder's model with its parameters on ``meta``; parameter -> stored tensor, see `_stored_names`.

    ``config``: that of `config_of` if None.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from coldpress.networks.experts import part_experts

    try:
        config = config or config_of(folder, trust_remote_code)
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, TypeError, LookupError, AttributeError) as error:
        raise ColdpressError(
            f"transformers cannot build a causal language model from {folder}: {error}", hint=COMPLETE
        ) from error
    filled = part_experts(model, set(shards.names()))
    return model.eval(), _stored_names(model, shards, filled)


def network_of(folder: Path, dtype: str, trust_remote_code: bool = False) -> Any:
    """The network of the class that config.json names, in ``dtype``; its parameters are there, but take no memory as
    long as nobody writes or reads them."""
    import torch
    import transformers

    try:
        config = config_of(folder, trust_remote_code)
        name = next(iter(config.architectures or ()), "")
        kind: Any = getattr(transformers, name, None) or transformers.AutoModel
        with _parameters_on_meta():
            make = kind.from_config if kind is transformers.AutoModel else kind._from_config
            network = make(config, dtype=getattr(torch, dtype))
    except (ValueError, OSError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise ColdpressError(f"transformers cannot build the network of {folder}: {error}", hint=COMPLETE) from error
    for module in network.modules():
        for local, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[local] = _without_memory(parameter)
    network.tie_weights()
    return network.eval()


def _without_memory(parameter: Any) -> Any:
    """A parameter on the CPU whose pages nobody has touched."""
    import torch

    return torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu"), requires_grad=False)


def empty_like(network: Any) -> Any:
    """The network that transformers loaded, as if no layer was quantized, in float32 and with its parameters on
    ``meta``."""
    import torch

    config = copy.deepcopy(network.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    if not network.all_tied_weights_keys:  # transformers keeps a head with values of its own
        config.tie_word_embeddings = False
    with _parameters_on_meta():
        return type(network)._from_config(config, dtype=torch.float32).eval()


def layer_names(model: Any) -> list[str]:
    """The names of the decoder layers: the members of the list of modules that holds most parameters."""
    from torch import nn

    def weights(item: tuple[str, Any]) -> int:
        return sum(parameter.numel() for parameter in item[1].parameters())

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ColdpressError(f"{type(model).__name__} has no list of layers, so it cannot be taken layer by layer")
    name, layers = max(lists, key=weights)
    return [f"{name}.{place}" for place in range(len(layers))]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built inside get parameters without memory; buffers, such as rotary frequencies, are real."""
    from torch import nn

    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _stored_names(model: Any, shards: Shards, filled: Mapping[str, str]) -> dict[str, str] | None:
    """Name in the model -> name in the files; None unless every parameter is one stored tensor, unchanged.

    ``filled``: stored name -> parameter where that is known already.
    """
    rename = renaming(model)
    names: dict[str, str] = {}
    for key in shards.names():
        name, is_converted = (filled[key], False) if key in filled else rename(key)
        if is_converted:
            return None
        names[name] = key
    tied = tied_names(model)
    for one, other in tied.items():
        if one in names:  # the checkpoint may have either of the two
            names.setdefault(other, names[one])
    for path, parameter in model.named_parameters(remove_duplicate=False):
        stored = names.get(path) or names.get(tied.get(path, ""))
        if stored is None:
            return None
        if shards.shape(stored) != tuple(parameter.shape):
            raise ColdpressError(
                f"tensor '{stored}' has shape {list(shards.shape(stored))}, config.json asks for"
                f" {list(parameter.shape)}",
                hint="is config.json that of these weights?",
            )
    return names


def renaming(model: Any) -> Any:
    """How transformers maps a stored name: name -> (name in the model, whether the values change too)."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 has no such table: a renamed parameter is missing, the model is loaded whole
        return lambda key: (key, False)
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    state = model.state_dict()

    def rename(key: str) -> tuple[str, bool]:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        return name, pattern is not None and name in state

    return rename


def tied_names(model: Any) -> dict[str, str]:
    """Parameter -> the parameter it shares its tensor with, as the model itself says."""
    tied = getattr(model, "all_tied_weights_keys", None)
    if isinstance(tied, Mapping):
        return dict(tied)
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}
