"""Where ONNX Runtime's quantized matrix product falls off a cliff on the CPU: is what coldpress refuses slow, and the
rest fast?

One product of a row with a weight of random codes (K=2048, N=4096), in one session each. The weight stays in the
processor's cache, which flatters small encodings; a cliff is 20 times deeper than that.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measure import Claim, Options, Outcome, spread, take_turns
from coldpress.errors import ColdpressError
from coldpress.graphs.kernels import Encoding
from coldpress.parts import refuse
from coldpress.rules.block_quantized_products import slow_encoding

ROUNDS = 5
_K, _N = 2048, 4096
_REPEATS, _AT_MOST_S = 50, 0.3


@dataclass(frozen=True)
class _Setting:
    """A ``MatMulNBits``: ``zero`` is ``none``, ``uint8`` or ``float32``, the type of its zero points."""

    bits: int
    block: int
    accuracy: int
    zero: str = "none"

    @property
    def name(self) -> str:
        zero = "" if self.zero == "none" else f", {self.zero} zero points"
        return f"{self.bits} bits, block {self.block}, accuracy {self.accuracy}{zero}"

    @property
    def is_refused(self) -> bool:
        """Whether coldpress refuses it. Float zero points it has no way to ask for."""
        if self.zero == "float32":
            return True
        try:
            refuse(slow_encoding(Encoding(self.bits, self.block, self.zero == "none"), self.accuracy, "cpu"))
        except ColdpressError:
            return True
        return False


def run(options: Options) -> Outcome:
    """The claims about the kernels that coldpress refuses and those it uses."""
    timers: dict[str, Callable[[], float]] = {"fp32 MatMul": _timer(_float_product(), options.threads)}
    settings, remarks = {}, []
    for setting in _settings():
        try:
            timers[setting.name] = _timer(_quantized_product(setting), options.threads)
            settings[setting.name] = setting
        except RuntimeError as error:
            remarks.append(f"{setting.name}: {str(error).splitlines()[0].rpartition('. ')[2]}")
    measured = {name: spread(taken) for name, taken in take_turns(timers, options.rounds or ROUNDS).items()}
    table: dict[str, Any] = {name: {"ms": numbers} for name, numbers in measured.items()}
    for name, setting in settings.items():
        table[name]["refused"] = setting.is_refused
    return Outcome(table, _claims(measured, settings), remarks)


def _claims(measured: dict[str, Any], settings: dict[str, _Setting]) -> list[Claim]:
    fp32 = measured["fp32 MatMul"]["median"]
    times = {name: measured[name]["median"] / fp32 for name in settings}
    refused = {name: times[name] for name, setting in settings.items() if setting.is_refused}
    used = {name: times[name] for name, setting in settings.items() if not setting.is_refused}
    fastest, slowest = min(refused, key=lambda name: refused[name]), max(used, key=lambda name: used[name])
    return [
        Claim(f"refused, the fastest ({fastest}): time over fp32 MatMul's", refused[fastest], 5.0, "higher"),
        Claim(f"used, the slowest ({slowest}): time over fp32 MatMul's", used[slowest], 1.0),
    ]


def _settings() -> Iterator[_Setting]:
    for bits, block, accuracy in itertools.product((4, 8, 2), (16, 32, 64, 128), (0, 4)):
        yield _Setting(bits, block, accuracy)
    for bits in (4, 8, 2):
        yield _Setting(bits, 32, 4, "uint8")
        yield _Setting(bits, 32, 4, "float32")


def _timer(model: bytes, threads: int) -> Callable[[], float]:
    """Opens a model; the returned function gives the median time in milliseconds of up to 50 runs."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, 4
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        feeds = {"a": np.random.default_rng(1).standard_normal((1, _K), np.float32)}
        session.run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise RuntimeError(str(error)) from error
    return functools.partial(_median_ms, session, feeds)


def _median_ms(session: Any, feeds: dict[str, np.ndarray]) -> float:
    session.run(None, feeds)
    taken: list[float] = []
    until = time.perf_counter() + _AT_MOST_S
    while len(taken) < _REPEATS and (not taken or time.perf_counter() < until):
        started = time.perf_counter()
        session.run(None, feeds)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e3


def _float_product() -> bytes:
    weight = np.random.default_rng(0).standard_normal((_K, _N), np.float32)
    return _graph("MatMul", {"weight": weight}, "", {})


def _quantized_product(setting: _Setting) -> bytes:
    """Codes ``[N, blocks, bytes of a block]`` and scales ``[N, blocks]`` at random, of about unit weights."""
    random, blocks = np.random.default_rng(0), _K // setting.block
    weights = {
        "codes": random.integers(0, 256, (_N, blocks, setting.block * setting.bits // 8), dtype=np.uint8),
        "scales": random.uniform(0.5, 1.5, (_N, blocks)).astype(np.float32) / np.float32(1 << setting.bits),
    }
    if setting.zero == "uint8":
        weights["zeros"] = random.integers(0, 256, (_N, blocks * setting.bits // 8), dtype=np.uint8)
    elif setting.zero == "float32":
        weights["zeros"] = random.uniform(0, 1 << setting.bits, (_N, blocks)).astype(np.float32)
    shape = {"K": _K, "N": _N, "bits": setting.bits, "block_size": setting.block}
    return _graph("MatMulNBits", weights, "com.microsoft", {**shape, "accuracy_level": setting.accuracy})


def _graph(operator: str, weights: dict[str, np.ndarray], domain: str, attributes: dict[str, Any]) -> bytes:
    """A model of one node: ``a [1, K]`` and the weights in, ``y [1, N]`` out."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(operator, ["a", *weights], ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, _K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, _N])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return made
