"""One layer of a decoder whose parameters are on ``meta``: which of them are there at once, and who watches its
inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.networks.routers import is_router
from coldpress.quant.grid import Floats

if TYPE_CHECKING:
    import torch

#: a packed weight and the copy of it that is written, in bytes
_PACKED_BYTES = 1.25


class Watcher:
    """Is told what comes to the linear modules of a layer while it runs; this one does not listen."""

    def see(self, module: str, inputs: torch.Tensor) -> None:
        """``inputs [..., K]`` come to a module. Modules that read the very same tensor are told of it in a row."""

    def left(self, modules: Collection[str]) -> None:
        """Nothing more will come to these."""

    def ran(self, windows: float) -> None:
        """So many windows are done."""


@dataclass(eq=False)
class DecoderLayer:
    """``path``: its name in the model; ``names``: stored name -> name inside the layer, of each parameter.

    ``experts``: the `Experts` in it that take turns, or None.
    """

    path: str
    module: Any
    names: dict[str, str]
    experts: Any

    def __post_init__(self) -> None:
        inside = next((name for name, part in self.module.named_modules() if part is self.experts), "")
        #: for each expert, stored name -> name inside the expert
        self.of_experts: list[dict[str, str]] = [{} for _ in self.experts.children()] if self.experts else []
        #: the parameters that every token meets
        self.of_all: dict[str, str] = {}
        for name, local in self.names.items():
            if self.experts and local.startswith(f"{inside}."):
                place, _, own = local.removeprefix(f"{inside}.").partition(".")
                self.of_experts[int(place)][name] = own
            else:
                self.of_all[name] = local

    def linears(self) -> dict[str, Any]:
        """The linear modules by their stored names, without those that route."""
        from torch import nn

        owners = {
            name.removesuffix(".weight"): self.module.get_submodule(local.removesuffix(".weight"))
            for name, local in self.names.items()
            if local.endswith(".weight")
        }
        return {name: own for name, own in owners.items() if isinstance(own, nn.Linear) and not is_router(name)}

    @contextmanager
    def watched(self, watcher: Watcher, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Tell a watcher what comes to the linear modules."""

        def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
            return lambda _module, args: None if unless() else watcher.see(name, args[0])

        hooks = [module.register_forward_pre_hook(hook(name)) for name, module in self.linears().items()]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    def memory(self) -> tuple[int, int]:
        """Bytes of the weights and sums that are there at once, and of activations for each token; of one expert."""
        others = {name for own in self.of_experts[1:] for name in own}
        shapes = [self.module.get_parameter(local).shape for name, local in self.names.items() if name not in others]
        linears = {f"{name}.weight": module for name, module in self.linears().items()}
        widths = {module.in_features for name, module in linears.items() if name not in others}
        weights = 4 * sum(shape.numel() for shape in shapes)
        grams = 3 * 4 * sum(size * size for size in widths)
        packed = _PACKED_BYTES * sum(linears[name].weight.numel() for name in others)
        activations = 4 * 4 * sum(max(shape) for shape in shapes if len(shape) == 2)
        return int(weights * 1.5 + grams + packed), activations


@contextmanager
def in_parts(model: Any, folder: Path) -> Iterator[None]:
    """Raise ColdpressError for what the code of a network raises when it is run in parts, which it may not expect."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ColdpressError(
            f"{type(model).__name__} in {folder} cannot be run layer by layer: {type(error).__name__}: {said}",
            hint="quantize it with `auto-opt --algorithm kquant`, which needs no data",
            exit_code=WORK_FAILED,
        ) from error


@contextmanager
def running_as(modules: Sequence[Any], forward: Callable[..., Any]) -> Iterator[None]:
    """Let modules run another forward than their own."""
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@contextmanager
def loaded(module: Any, names: Mapping[str, str], weights: Mapping[str, Floats], like: torch.Tensor) -> Iterator[None]:
    """Give a module parameters: of ``names``, stored name -> name inside; those on ``meta`` come back afterwards.

    ``like``: a tensor of their kind, on their device.
    """
    import torch
    from torch import nn

    empty = {}
    try:
        for name, local in names.items():
            parent, _, own = local.rpartition(".")
            parameters = module.get_submodule(parent)._parameters
            empty[name] = parameters, own, parameters[own]
            tensor = torch.from_numpy(weights[name]).to(like)
            parameters[own] = nn.Parameter(tensor, requires_grad=False)
        yield
    finally:
        for parameters, own, parameter in empty.values():
            parameters[own] = parameter
