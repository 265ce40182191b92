"""Which tensor of a checkpoint fills which initializer of a captured graph.

Most architectures only rename tensors, some split or transpose them. What mobius' own preparation of weights does is
watched, not repeated: it is run on stand-ins, and where these are not enough, on memory-mapped tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs import deferred_torch
from coldpress.networks.checkpoint import Span, read_header
from coldpress.networks.packed import PackedSpan


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


def sources_of(module: Any, spans: Mapping[str, Span], scratch: Path) -> dict[str, Span]:
    """Which of the checkpoint's ``spans``, or what part of one, fills each initializer.

    First try: mobius renames stand-ins and cuts them into rows. If it needs real tensors (to transpose or to
    rearrange), it gets memory-mapped ones; a result that is a view of the map becomes a span with strides, a
    computed one is saved in ``scratch`` as ``computed.safetensors``. Packed weights can only be renamed and cut:
    ColdpressError where more is needed.
    """
    try:
        renamed = module.preprocess_weights({name: _StandIn(span) for name, span in spans.items()})
        return {name: stand_in.span for name, stand_in in renamed.items()}
    except (AttributeError, TypeError):
        _refuse_packed(spans.values())
        return _traced(module, spans, scratch)


def _refuse_packed(spans: Iterable[Span]) -> None:
    packed = next((span for span in spans if isinstance(span, PackedSpan)), None)
    if packed is not None:
        raise ColdpressError(
            f"'{packed.name.removesuffix('.weight')}' is quantized, and this architecture's weights are transposed or "
            "mixed on their way into the graph, which codes in blocks cannot follow",
            hint="start from the unquantized model, or save it dequantized with transformers",
        )


def _traced(module: Any, spans: Mapping[str, Span], scratch: Path) -> dict[str, Span]:
    deferred_torch.load()
    import torch

    homes: list[tuple[int, int, Span]] = []
    tensors = {}
    for name, span in spans.items():
        view = span.view()
        tensor = torch.from_numpy(view.view(np.int16) if span.dtype == "BF16" else view)
        tensors[name] = tensor.view(torch.bfloat16) if span.dtype == "BF16" else tensor
        homes.append((tensor.data_ptr(), tensor.data_ptr() + view.nbytes, span))
    homes.sort(key=lambda home: home[0])
    found: dict[str, Span] = {}
    computed: dict[str, Any] = {}
    for name, tensor in module.preprocess_weights(tensors).items():
        place = _locate(tensor, homes)
        if place is None:
            computed[name] = tensor
        else:
            found[name] = place
    return {**found, **_save_computed(computed, scratch)}


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
