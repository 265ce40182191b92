"""How far the outputs of an ONNX model are from those of the PyTorch module that it was made from.

The module runs as it is, in eager PyTorch, on the example that its script gives and on other sizes of its open axes,
with values drawn from those of the example. The distance of an output is ``|model - module| / |module|``, over all
examples together; of whole numbers and flags it is the share that differs. A size that the module itself does not take
is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.graphs.capture.module import Call, Module, ModuleOptions, open_module, sizes_to_try
from coldpress.graphs.session import Session
from coldpress.models.model import MODULES, Model
from coldpress.parts import Context, Metric, Value

_NOTHING = 1e-12


@dataclass(frozen=True)
class ModuleDivergence(ModuleOptions, Metric):
    """Compares an ONNX model with ``ctx.source``, the module that it was made from."""

    values: ClassVar[Mapping[str, Value]] = {"relative": Value("lower"), "cosine": Value("higher")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("torch", "onnxruntime")

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        """The worst ``relative`` and ``cosine`` of all outputs, ``output``, which it is, and ``sizes``, the shapes that
        were tried. ColdpressError for a model that does not run where the module does.
        """
        if ctx.source is None or ctx.source.format not in MODULES:
            raise ColdpressError("module_divergence needs the module to compare with")
        module, session = open_module(ctx.source, self), Session(model.path, ctx.target)
        expected: list[list[np.ndarray]] = []
        found: list[list[np.ndarray]] = []
        sizes = []
        for call in _calls(module, session):
            feed = {name: _array(tensor) for name, tensor in call.tensors.items() if name in session.inputs}
            outputs = _eager(module, call)
            if outputs is None:
                continue
            shapes = {name: list(array.shape) for name, array in feed.items()}
            expected.append(outputs)
            found.append(_of_graph(session, feed, shapes))
            sizes.append(shapes)
            ctx.progress("comparing with the module", len(sizes), 0)
        names = list(session.outputs)
        by_output = {name: _compared(*pair) for name, pair in zip(names, _columns(expected, found), strict=True)}
        worst = max(by_output, key=lambda name: by_output[name][0])
        relative, cosine = by_output[worst][0], min(one[1] for one in by_output.values())
        return {"relative": relative, "cosine": cosine, "output": worst, "sizes": sizes}


def _calls(module: Module, session: Session) -> Iterator[Call]:
    """The example, and others on axes that the graph has open, too."""
    fits = all(_fits(session, name, tuple(one.shape)) for name, one in module.call.tensors.items())
    if fits:
        yield module.call
    fixed = {called: size for called, places in module.open_axes.items() if (size := _fixed(session, places))}
    if fixed and not fits:
        yield module.resized(fixed)
    for seed, sizes in enumerate(sizes_to_try(module), start=1):
        yield module.resized({**sizes, **fixed}, seed)


def _fits(session: Session, name: str, shape: tuple[int, ...]) -> bool:
    wanted = session.inputs[name].shape if name in session.inputs else shape
    return all(not isinstance(size, int) or size == given for size, given in zip(wanted, shape, strict=True))


def _fixed(session: Session, places: list[tuple[str, int]]) -> int | None:
    """The size that the graph has on an axis that the module has open."""
    sizes = [session.inputs[name].shape[axis] for name, axis in places if name in session.inputs]
    return next((size for size in sizes if isinstance(size, int)), None)


def _eager(module: Module, call: Call) -> list[np.ndarray] | None:
    try:
        return [_array(one) for one in module.outputs(call)]
    except Exception:
        if call is module.call:
            raise
        return None


def _of_graph(session: Session, feed: dict[str, np.ndarray], shapes: Mapping[str, Any]) -> list[np.ndarray]:
    try:
        given = session.outputs_for({name: _as(feed[name], session.inputs[name].dtype) for name in session.inputs})
    except ColdpressError as error:
        raise ColdpressError(
            f"it does not run on inputs of the shapes {dict(shapes)}, which the module takes: {error.message}",
            hint="an axis that is declared open may have one size only in the module's own code",
            exit_code=WORK_FAILED,
        ) from error
    return [np.asarray(given[name]) for name in session.outputs]


def _as(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return array if array.dtype == dtype else array.astype(dtype)


def _array(tensor: Any) -> np.ndarray:
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.asarray(wide.detach().cpu().numpy())


def _columns(expected: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> list[tuple[Any, Any]]:
    counts = {len(one) for one in (*expected, *found)}
    if len(counts) != 1:
        raise ColdpressError(f"the module gives {len(expected[0])} outputs, its graph {len(found[0])}")
    return [(list(a), list(b)) for a, b in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True)]


def _compared(expected: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, float]:
    """The relative distance and the cosine of an output over all examples."""
    if any(one.shape != two.shape for one, two in zip(expected, found, strict=True)):
        return float("inf"), -1.0
    if any(one.dtype.kind not in "fc" for one in expected):
        different = sum(int(np.sum(one != two)) for one, two in zip(expected, found, strict=True))
        share = different / max(1, sum(one.size for one in expected))
        return share, 1.0 - share
    source = np.concatenate([one.reshape(-1).astype(np.float64) for one in expected])
    model = np.concatenate([one.reshape(-1).astype(np.float64) for one in found])
    same = np.isfinite(source) | (source == model) | (np.isnan(source) & np.isnan(model))
    if not same.all() or not np.isfinite(model[np.isfinite(source)]).all():
        return float("inf"), -1.0
    finite = np.isfinite(source)
    source, model = source[finite], model[finite]
    size, off = float(np.linalg.norm(source)), float(np.linalg.norm(source - model))
    if size <= _NOTHING:
        return off, 1.0 if off <= _NOTHING else 0.0
    return off / size, float(source @ model) / max(size * float(np.linalg.norm(model)), _NOTHING)
