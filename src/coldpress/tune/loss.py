"""The loss of a language model without its logits: the head works on the places that count, a few at a time.

The float32 logits of all tokens of a step are larger than the model itself. Here each few hundred places get their
logits, their loss and its gradient, and the logits are gone again. The head is the model's own forward with its body
replaced by what the body has given already, so that scaling, capping and biases of logits are its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError
from coldpress.tune.rows import NOT_SCORED

if TYPE_CHECKING:
    import torch

#: logits that exist at once
_LOGITS_AT_ONCE = 1 << 23


@dataclass(eq=False)
class SummedLoss:
    """Takes the place of a causal language model's forward, which then gives the sum of the losses of all targets.

    ``model`` is the network itself, adapters within it, not PEFT's wrapper. ``compute_dtype``: what products are done
    in; adapters stay float32. ``smoothing``: of labels, as PyTorch's cross entropy takes it.
    """

    model: Any
    compute_dtype: Any
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        self._own = self.model.forward
        self._output: Any = dict  # the class of what the body gives
        self._body: Any = getattr(self.model, self.model.base_model_prefix or " ", None)
        if self._body is None or self._body is self.model:
            raise ColdpressError(f"{type(self.model).__name__} does not set its body and its head apart")

    def install(self) -> None:
        self.model.forward = self.forward

    def forward(self, input_ids: Any, position_ids: Any, labels: Any, **_: Any) -> Any:
        """``labels`` ``[sequences, tokens]`` hold for each place what is predicted there.

        The loss is a sum, in float32.
        """
        from transformers.modeling_outputs import CausalLMOutput

        with self._autocast(input_ids.device.type):
            states = self._states(input_ids, position_ids)
            counted = labels != NOT_SCORED
            states, targets = states[counted], labels[counted]
            if self._head_is_trained:
                loss = self._checkpointed(states, targets)
            else:
                loss = _summed().apply(states, targets, self)
        return CausalLMOutput(loss=loss)

    def logits(self, input_ids: Any, position_ids: Any) -> torch.Tensor:
        """All logits ``[sequences, tokens, vocabulary]``: for a few tokens."""
        import torch

        with torch.no_grad(), self._autocast(input_ids.device.type):
            states = self._states(input_ids, position_ids)
            return self.head(states.reshape(-1, states.shape[-1])).reshape(*states.shape[:-1], -1)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """The logits ``[places, vocabulary]`` of ``states [places, width]``, what the body gives there."""
        import torch

        given = self._output(last_hidden_state=states[None])
        ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
        with _replaced(self._body, lambda *args, **kwargs: given):
            logits: torch.Tensor = self._own(input_ids=ids, use_cache=False).logits[0]
        return logits

    def chunks(self, places: int) -> Iterator[slice]:
        """The places of which logits exist at once."""
        vocabulary = self.model.config.get_text_config().vocab_size
        size = max(1, _LOGITS_AT_ONCE // vocabulary)
        return (slice(start, min(start + size, places)) for start in range(0, places, size))

    def of_chunk(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of a few places."""
        from torch.nn.functional import cross_entropy

        logits = self.head(states).float()
        return cross_entropy(logits, targets, reduction="sum", label_smoothing=self.smoothing)

    def _states(self, input_ids: Any, position_ids: Any) -> Any:
        places = {"position_ids": position_ids} if self._takes_positions else {}
        output = self._body(input_ids=input_ids, use_cache=False, **places)
        self._output = type(output)
        return output.last_hidden_state

    def _autocast(self, device: str) -> Any:
        import torch

        is_mixed = self.compute_dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(device, dtype=self.compute_dtype if is_mixed else torch.bfloat16, enabled=is_mixed)

    def _checkpointed(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        parts = (
            checkpoint(self.of_chunk, states[one], targets[one], use_reentrant=False)
            for one in self.chunks(len(states))
        )
        return sum(parts, states.new_zeros((), dtype=states.float().dtype))

    @cached_property
    def _takes_positions(self) -> bool:
        parameters = inspect.signature(self._body.forward).parameters
        return "position_ids" in parameters

    @cached_property
    def _head_is_trained(self) -> bool:
        head = self.model.get_output_embeddings()
        return head is not None and any(parameter.requires_grad for parameter in head.parameters())


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _summed() -> Any:
    """The autograd function that finds the gradient of the states together with their loss; the head gets none."""
    import torch

    class Summed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, states: torch.Tensor, targets: torch.Tensor, loss: SummedLoss) -> torch.Tensor:
            total = torch.zeros((), dtype=torch.float32, device=states.device)
            wants_gradient = ctx.needs_input_grad[0]
            gradient = torch.empty_like(states) if wants_gradient else None
            for one in loss.chunks(len(states)):
                with torch.set_grad_enabled(wants_gradient):
                    part = states[one].detach().requires_grad_(wants_gradient)
                    found = loss.of_chunk(part, targets[one])
                if gradient is not None:
                    (gradient[one],) = torch.autograd.grad(found, part)
                total += found.detach()
            ctx.gradient = gradient
            return total

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
            return ctx.gradient * upstream[0], None, None

    return Summed
