"""Random graphs through every ONNX pass: the result opens and computes the same, or the pass refuses the graph plainly.

ONNX Runtime opens and runs what was written, here and by itself: the product's own comparison has no say.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.metrics.graph_divergence import GraphDivergence
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.target import Target
from tests.fuzz.graphs import Case, random_case
from tests.onnx_models import run_pass, saved

GPU = Target("gpu", "CUDAExecutionProvider", 1)
CPU = Target(threads=1)
#: pass, its options, the target, and how far an output may be off: the norm of the difference in units of the output's
PASSES: tuple[tuple[str, dict[str, Any], Target, float], ...] = (
    ("onnx_peephole_optimizer", {}, CPU, 1e-4),
    ("onnx_opset_conversion", {"target_opset": 21}, CPU, 1e-4),
    ("onnx_opset_conversion", {"target_opset": 13}, CPU, 1e-4),
    ("ort_transformers_optimization", {}, CPU, 1e-3),
    ("ort_transformers_optimization", {"opt_level": 1, "only_onnxruntime": True}, CPU, 1e-3),
    ("dynamic_to_fixed_shape", {"input_name": ("x",)}, CPU, 1e-4),
    ("onnx_io_datatype_converter", {"name_pattern": "*", "source_dtype": "float32", "target_dtype": "double"}, CPU, 1e-4),
    ("onnx_float_to_float16", {}, GPU, 0.05),
    ("onnx_float_to_float16", {"keep_io_types": True}, GPU, 0.05),
    ("onnx_dynamic_quantization", {}, CPU, 0.25),
    ("onnx_dynamic_quantization", {"per_channel": False, "precision": "uint8"}, CPU, 0.35),
    ("onnx_static_quantization", {"num_samples": 4}, CPU, 0.5),
    ("onnx_static_quantization", {"num_samples": 4, "quant_format": "qoperator"}, CPU, 0.5),
    ("quantize_onnx", {"precision": "int8", "algorithm": "rtn"}, CPU, 0.15),
    ("quantize_onnx", {"precision": "int4"}, CPU, 0.6),
    ("session_options", {"graph_optimization_level": "basic"}, CPU, 1e-4),
)  # fmt: skip
ROWS = (3, 2)


def test_a_few_graphs_through_every_pass(tmp_path):
    assert swept(range(10), tmp_path) == ([], [])


@pytest.mark.full
def test_two_hundred_graphs_through_every_pass(tmp_path):
    wrong, late = swept(range(200), tmp_path)
    assert not wrong
    assert len(late) < 0.01 * 200 * len(PASSES)


def swept(seeds: Any, folder: Path) -> tuple[list[str], list[str]]:
    """What went wrong: a line for each pass that failed otherwise than plainly, or wrote what does not open or is far
    off.

    And what a pass wrote that does not open here, but is not let out of the house either.
    """
    wrong, late = list[str](), list[str]()
    for seed in seeds:
        case = random_case(seed)
        source = saved(case.model, folder / f"{seed}" / "source", external=seed % 3 == 0)
        if (before := _outputs(source, case)) is None:
            continue  # the generator's fault: nothing can be said about it
        for place, (name, options, target, limit) in enumerate(PASSES):
            given = {**options, "input_shape": (_shape(case),)} if "input_name" in options else options
            why = _wrong(name, given, target, limit, (source, case, before))
            if why:
                (late if why.startswith(_LATE) else wrong).append(f"seed {seed} ({', '.join(case.blocks)}; opset {case.model.opset_import[0].version}), "
                             f"pass {place} {name}: {why}")  # fmt: skip
        shutil.rmtree(folder / f"{seed}")
    return wrong, late


_LATE = "held back"


def _wrong(name: str, options: dict[str, Any], target: Target, limit: float, known: tuple[Path, Case, Any]) -> str:
    source, case, before = known
    try:
        made = run_pass(name, source, target, **options)
    except ColdpressError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:600]}"
    after = _outputs_apart(made.path, case, ROWS[:1] if "input_name" in options else ROWS)
    if after == _DIED:  # which ends every run with an error, as it does that in a process of its own
        return f"{_LATE}: ONNX Runtime aborts when it opens it"
    if after is None:
        why = f"it does not open or run: {_why(made.path, case)}"
        return f"{_LATE}: {why}" if _is_held_back(source, made, target, _allowed(name, options)) else why
    far = max(
        _distance(one, two) for old, new in zip(before, after, strict=False) for one, two in zip(old, new, strict=True)
    )
    if far <= limit:
        return ""
    return (
        f"{_LATE if _is_held_back(source, made, target, _allowed(name, options)) else 'let out'}: it is off by"
        f" {far:.3g}"
    )


def _allowed(name: str, options: dict[str, Any]) -> float:
    """How far the pass itself says that its result may be off."""
    closeness = parts.find("passes", name)(**options).closeness
    assert closeness is not None
    return float(closeness.relative)


def _is_held_back(source: Path, made: Model, target: Target, limit: float) -> bool:
    """Whether what every run does after a pass finds out that its result is of no use."""
    context = Context(made.path, target, Model(source, "onnx", "source"))
    try:
        numbers = GraphDivergence(limit=limit).measure(made, context)
    except ColdpressError:
        return True
    return numbers["relative"] > numbers["allowed"]


def _shape(case: Case) -> str:
    return ",".join(str(size) for size in case.feed(ROWS[0])["x"].shape)


_DIED = "died"


def _outputs_apart(folder: Path, case: Case, counts: tuple[int, ...]) -> Any:
    """`_outputs` in a process of its own, which ONNX Runtime may abort: what a pass wrote may be anything."""
    place, file = folder / "outputs.pickle", folder.parent / f"{folder.name}.pickle"
    child = os.fork()
    if child == 0:
        with place.open("wb") as stream:
            pickle.dump(_outputs(folder, case, counts), stream)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        return _DIED
    return pickle.loads(place.replace(file).read_bytes())


def _outputs(folder: Path, case: Case, counts: tuple[int, ...] = ROWS) -> list[list[np.ndarray]] | None:
    """The outputs for each number of rows; None where it does not open or run."""
    try:
        return _run(folder, case, counts)
    except Exception:
        return None


def _why(folder: Path, case: Case) -> str:
    try:
        _run(folder, case, ROWS[:1])
    except Exception as error:
        return str(error).replace(str(folder), "")[:300]
    return "only with other numbers of rows"


def _run(folder: Path, case: Case, counts: Any) -> list[list[np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    file = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = {value.name: _numpy(value.type) for value in session.get_inputs()}
    names = [output.name for output in case.model.graph.output]
    feeds = [{name: array.astype(kinds[name]) for name, array in case.feed(count).items()} for count in counts]
    return [session.run(names, feed) for feed in feeds]


def _numpy(kind: str) -> Any:
    return {"float": np.float32, "float16": np.float16, "double": np.float64, "int64": np.int64}[kind[7:-1]]


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    if one.shape != two.shape:
        return float("inf")
    one, two = one.astype(np.float64), two.astype(np.float64)
    return float(np.linalg.norm(one - two) / max(np.linalg.norm(one), 1e-6 * one.size**0.5))


def test_the_generator_makes_graphs_that_run_and_all_kinds_of_them():
    blocks = {name for seed in range(60) for name in random_case(seed).blocks}
    assert len(blocks) > 25
    for seed in range(5):
        onnx.checker.check_model(random_case(seed).model)
