"""PEFT's own layers in a network whose weights lie elsewhere: every kind of adapter acts, or is merged, as PEFT does
it.

The parameters of the base are zeros that take no memory until someone fills them; the adapter's tensors are read. What
an adapter's file has of the base itself (a resized embedding, trained biases) is there at once and is the base's from
then on, as in PEFT.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coldpress.errors import ColdpressError
from coldpress.models.adapter_base import EMBEDDINGS
from coldpress.models.checkpoint import read_header
from coldpress.models.peft import LORA_BIAS, TRAIN_WITHOUT_BIAS, WEIGHTS


class Adapted:
    """A transformers model with the adapter of ``folder`` in its modules. ``network``: that model, changed in place.

    ``tied``: parameter -> the one that it shares its tensor with. ``tokens``: the size of the vocabulary, where the
    adapter was trained with another one than the base has. Raises ColdpressError for an adapter that PEFT cannot put on
    the network, or that has tensors for which the network has no place.
    """

    def __init__(self, network: Any, folder: Path, tied: Mapping[str, str]):
        self.network = network
        self.tokens = resize(network, folder)
        self._names = {id(module): name for name, module in network.named_modules()}
        for (
            module
        ) in network.modules():  # PEFT puts adapters where the weights are: on the CPU, where these take no memory
            for name, parameter in module.named_parameters(recurse=False):
                module._parameters[name] = _empty(parameter)
        self._tuner = _put_on(network, folder)
        self._share(tied)

    def _share(self, tied: Mapping[str, str]) -> None:
        """What the adapter's file has for one of two that share a tensor is both's."""
        places = {name: (module, local) for name, module, local in self._parameters()}
        for pair in tied.items():
            (module, local), (other, its) = (places[name] for name in pair)
            if is_empty(module._parameters[local]) and not is_empty(other._parameters[its]):
                module._parameters[local] = other._parameters[its]
            elif is_empty(other._parameters[its]):
                other._parameters[its] = module._parameters[local]

    def base_modules(self) -> Iterator[tuple[str, Any, Any]]:
        """The base's own modules: name, module, and the outermost layer of PEFT around it, or itself without one."""
        yield from self._within(self.network, None)

    def _within(self, module: Any, around: Any) -> Iterator[tuple[str, Any, Any]]:
        name = self._names.get(id(module))
        if name is not None:
            yield name, module, module if around is None else around
        outer = around if around is not None or not _is_of_peft(module) else module
        for child in module.children():
            yield from self._within(child, outer)

    def wrappers(self) -> list[Any]:
        """The outermost layers of PEFT, in the order of the network."""
        found = {id(around): around for _, module, around in self.base_modules() if around is not module}
        return list(found.values())

    def missing(self) -> dict[str, tuple[int, ...]]:
        """The shapes of those parameters that have to come from the base, by name."""
        found = ((name, module._parameters[local]) for name, module, local in self._parameters())
        return {name: tuple(parameter.shape) for name, parameter in found if is_empty(parameter)}

    def replaced(self) -> dict[str, torch.Tensor]:
        """Parameters of the base that the adapter's file has in place of the base's, by name."""
        found = ((name, module._parameters[local]) for name, module, local in self._parameters())
        return {name: parameter.detach() for name, parameter in found if not is_empty(parameter)}

    def _parameters(self) -> Iterator[tuple[str, Any, str]]:
        """The base's parameters: name, the module that has it, and its name there."""
        for name, module, _ in self.base_modules():
            for local, parameter in module._parameters.items():
                if parameter is not None:
                    yield f"{name}.{local}" if name else local, module, local

    def merged(self, wrapper: Any, values: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that a layer of PEFT leaves in its module's place, by their names in the base.

        ``values``: the base's parameter of a name, which may be changed. Raises ColdpressError where PEFT cannot merge.
        """
        inside = [(name, module) for name, module, around in self.base_modules() if around is wrapper]
        with _filled(inside, values):
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._tuner._check_merge_allowed()
                    left = _unwrapped(wrapper)
            except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                hint = TRAIN_WITHOUT_BIAS if LORA_BIAS in str(error) else None
                raise ColdpressError(
                    f"PEFT cannot merge the adapter of '{inside[0][0]}': {error}", hint=hint
                ) from error
            return {f"{inside[0][0]}.{local}": p.detach().float().clone() for local, p in left.named_parameters()}


_ZERO = torch.zeros(1)


def is_empty(parameter: Any) -> bool:
    """Whether a parameter is nothing but the zero that takes the place of all."""
    return parameter.data_ptr() == _ZERO.data_ptr()


def _empty(parameter: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(_ZERO.expand(parameter.shape), requires_grad=False)


def _is_of_peft(module: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def _unwrapped(wrapper: Any) -> Any:
    """The module that PEFT puts back when it merges."""
    if hasattr(wrapper, "unload_and_optionally_merge_module"):
        return wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    wrapper.merge()
    return wrapper.get_base_layer()


@contextmanager
def _filled(modules: list[tuple[str, Any]], values: Callable[[str], torch.Tensor]) -> Iterator[None]:
    """Modules with values as long as they are worked on."""
    before = [(module, dict(module._parameters)) for _, module in modules]
    for name, module in modules:
        for local, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[local] = nn.Parameter(values(f"{name}.{local}"), requires_grad=False)
    try:
        yield
    finally:
        for module, parameters in before:
            module._parameters.clear()
            module._parameters.update(parameters)


def _put_on(network: Any, folder: Path) -> Any:
    """Let PEFT put its layers into the network and the tensors into these; gives what PEFT calls its tuner."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options: dict[str, Any] = {"low_cpu_mem_usage": True, "torch_device": "cpu"}
            wrapped = PeftModel.from_pretrained(network, str(folder), **options)
            unexpected = wrapped.load_adapter(str(folder), "default", **options).unexpected_keys
    except (ValueError, RuntimeError, LookupError, OSError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(
            f"the adapter {folder} cannot be put on its base: {reason}", hint="was it trained on another model?"
        ) from error
    unknown = [name for name in unexpected if not name.endswith(_TWICE)]
    missing = [name for name, parameter in wrapped.named_parameters() if parameter.device.type == "meta"]
    for names, what in (
        (unknown, f"{WEIGHTS} has '{{}}', for which its base has no place"),
        (missing, "it has no tensor '{}'"),
    ):
        if names:
            raise ColdpressError(
                f"the adapter {folder} cannot be put on its base: {what.format(min(names))}",
                hint="was it trained on another model?",
            )
    return wrapped.base_model


#: what PEFT saves of a whole module once more, beside its tensors, where the vocabulary has another size than the
#: base's
_TWICE = (
    *(f".{part}.{local}" for part in ("modules_to_save", "original_module") for local in ("weight", "bias")),
    ".token_adapter.trainable_tokens_delta",
)


def resize(network: Any, adapter: Path) -> int | None:
    """Give a network the vocabulary that an adapter was trained with; how many tokens, where that is another than its
    own."""
    rows = [
        span.shape[1 if name.endswith("lora_embedding_A") else 0]
        for name, span in read_header(adapter / WEIGHTS).items()
        if name.endswith(_OF_VOCABULARY)
    ]
    table = network.get_input_embeddings()
    if not rows or table is None or max(rows) == table.weight.shape[0]:
        return None
    network.resize_token_embeddings(max(rows), mean_resizing=False)
    return max(rows)


_OF_VOCABULARY = tuple(
    f"{module}.{part}"
    for module in (*EMBEDDINGS, "lm_head", "embed_out")
    for part in (
        *("weight", "base_layer.weight", "token_adapter.base_layer.weight"),
        *("lora_embedding_A", "lora_B.weight"),
    )
)
