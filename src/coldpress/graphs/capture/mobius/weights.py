"""Which tensor of a checkpoint fills which initializer of a captured graph.

Most architectures only rename tensors, some split or transpose them. What mobius' own preparation of weights does is
watched, not repeated: it is run on stand-ins, and where these are not enough, on memory-mapped tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.capture.mobius import deferred_torch
from coldpress.models.checkpoint import Span, read_header
from coldpress.models.packed.spans import PackedSpan

#: the attribute of a tensor that names what it was made from
_ORIGINS = "made_from"


@dataclass(frozen=True)
class _StandIn:
    """Stands for a tensor: it can be renamed and cut into rows. All else raises, which says that this is not enough."""

    span: Span

    @property
    def shape(self) -> tuple[int, ...]:
        return self.span.shape

    def __getitem__(self, rows: Any) -> _StandIn:
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError("a stand-in can only be cut into rows")
        start, stop, _ = rows.indices(self.span.shape[0])
        return _StandIn(self.span.cut(start, stop))


@dataclass(frozen=True)
class Sources:
    """``spans``: what fills each initializer.

    ``origins``: the checkpoint's tensors that computed ones were made from.
    """

    spans: dict[str, Span]
    origins: dict[str, frozenset[str]]


def sources_of(module: Any, spans: Mapping[str, Span], scratch: Path) -> Sources:
    """Which of the checkpoint's ``spans``, or what part of one, fills each initializer.

    First try: mobius renames stand-ins and cuts them into rows. If it needs real tensors (to transpose or to
    rearrange), it gets memory-mapped ones; a result that is a view of the map becomes a span with strides, a
    computed one is saved in ``scratch`` as ``computed.safetensors``. Packed weights can only be renamed and cut:
    ColdpressError where more is needed.
    """
    try:
        renamed = module.preprocess_weights({name: _StandIn(span) for name, span in spans.items()})
        return Sources({name: stand_in.span for name, stand_in in renamed.items()}, {})
    except (AttributeError, TypeError):
        _refuse_packed(spans.values())
        return _traced(module, spans, scratch)
    except ValueError as error:
        raise ColdpressError(
            f"the weights do not fit config.json: {error}", hint="is config.json that of these weights?"
        ) from error


def with_base_prefix(spans: Mapping[str, Span], wanted: Collection[str]) -> dict[str, Span]:
    """The tensors of a checkpoint by the names that it would have them under if it was not saved from the base model
    alone.

    ``wanted``: the names that the graph has. transformers reads both, too.
    """
    for prefix in {name.partition(".")[0] for name in wanted}:
        is_used = any(name.startswith(f"{prefix}.") for name in spans)
        if not is_used and any(f"{prefix}.{name}" in wanted for name in spans):
            return {name if name in wanted else f"{prefix}.{name}": span for name, span in spans.items()}
    return dict(spans)


def _refuse_packed(spans: Iterable[Span]) -> None:
    packed = next((span for span in spans if isinstance(span, PackedSpan)), None)
    if packed is not None:
        raise ColdpressError(
            f"'{packed.name.removesuffix('.weight')}' is quantized, and this architecture's weights are transposed or "
            "mixed on their way into the graph, which codes in blocks cannot follow",
            hint="start from the unquantized model, or save it dequantized with transformers",
        )


def _traced(module: Any, spans: Mapping[str, Span], scratch: Path) -> Sources:
    deferred_torch.load()
    import torch

    homes: list[tuple[int, int, Span]] = []
    tensors = {}
    for name, span in spans.items():
        view = span.view()
        tensor = torch.from_numpy(view.view(np.int16) if span.dtype == "BF16" else view)
        tensors[name] = tensor.view(torch.bfloat16) if span.dtype == "BF16" else tensor
        setattr(tensors[name], _ORIGINS, frozenset([name]))
        homes.append((tensor.data_ptr(), tensor.data_ptr() + view.nbytes, span))
    homes.sort(key=lambda home: home[0])
    found: dict[str, Span] = {}
    computed: dict[str, Any] = {}
    with _following():
        prepared = module.preprocess_weights(tensors)
    for name, tensor in prepared.items():
        place = _locate(tensor, homes)
        if place is None:
            computed[name] = tensor
        else:
            found[name] = place
    origins = {name: getattr(tensor, _ORIGINS, frozenset[str]()) for name, tensor in computed.items()}
    return Sources({**found, **_save_computed(computed, scratch)}, origins)


def _following() -> Any:
    """A context in which each tensor that torch makes notes the names of the checkpoint's tensors that it was made
    from."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_leaves

    class Following(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            read = [value for value in tree_leaves([args, kwargs]) if isinstance(value, torch.Tensor)]
            origins = frozenset[str]().union(*(getattr(tensor, _ORIGINS, ()) for tensor in read))
            written = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
            for tensor in [*written, *(read[:1] if function is torch.Tensor.__setitem__ else [])] if origins else []:
                setattr(tensor, _ORIGINS, origins)
            return result

    return Following()


def _locate(tensor: Any, homes: list[tuple[int, int, Span]]) -> Span | None:
    """The span a tensor is a view of, under its home's name, or None when its memory is its own."""
    address = tensor.data_ptr()
    for start, stop, home in homes:
        if start <= address < stop:
            shape, strides = tuple(tensor.shape), tuple(tensor.stride())
            return Span(home.name, home.file, home.dtype, shape, home.offset + address - start, strides)
    return None


def _save_computed(tensors: dict[str, Any], scratch: Path) -> dict[str, Span]:
    if not tensors:
        return {}
    import torch
    from safetensors.torch import save_file

    file = scratch / "computed.safetensors"
    floats = {name: tensor.contiguous() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    if len(floats) != len(tensors):
        raise ColdpressError("this architecture's weights cannot be prepared", exit_code=WORK_FAILED)
    save_file({name: tensor.clone() for name, tensor in floats.items()}, file)
    return read_header(file)
