"""Session options: written where runtimes look for them, and found by measuring."""

from __future__ import annotations

import json

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session, read_options
from coldpress.target import Target
from tests.onnx_models import dense, files, run_pass, saved

X = np.ones((1, 8), np.float32)


def test_options_lie_beside_the_graph_which_shares_its_bytes(tmp_path):
    source = saved(dense(), tmp_path / "source")
    made = run_pass("session_options", source, intra_op_num_threads=1, graph_optimization_level="extended")
    assert read_options(made.path) == {"graph_optimization_level": "extended", "intra_op_num_threads": 1}
    assert files(made.path) == {"model.onnx", "vocabulary.txt", "session_options.json"}
    assert (made.path / "model.onnx").samefile(source / "model.onnx")
    Session(made.path, Target()).step({"x": X})()


def test_what_was_set_before_stays(tmp_path):
    source = saved(dense(), tmp_path / "source", external=True)
    first = run_pass("session_options", source, execution_mode="parallel", inter_op_num_threads=2)
    second = run_pass("session_options", first.path, intra_op_num_threads=1)
    assert read_options(second.path) == {
        "inter_op_num_threads": 2, "execution_mode": "parallel", "intra_op_num_threads": 1}  # fmt: skip
    assert not (second.path / "weights.bin").samefile(first.path / "weights.bin"), "onnx refuses tensors with two names"


def test_options_of_a_provider_hold_where_that_one_runs(tmp_path):
    source = saved(dense(), tmp_path / "source")
    made = run_pass("session_options", source, provider_options={"arena_extend_strategy": "kSameAsRequested"})
    known = {"provider_options": {"CPUExecutionProvider": {"arena_extend_strategy": "kSameAsRequested"}}}
    assert read_options(made.path) == known
    Session(made.path, Target()).step({"x": X})()
    cuda = run_pass("session_options", source, Target("gpu", "CUDAExecutionProvider"), provider_options={"no": "1"})
    Session(cuda.path, Target()).step({"x": X})()


def test_integers_that_stay_floats_are_said(tmp_path):
    quantized = run_pass("onnx_static_quantization", saved(dense(), tmp_path / "source"), num_samples=1)
    made = run_pass("session_options", quantized.path, graph_optimization_level="basic")
    assert any("from the level 'extended' on" in line for line in made.provenance.remarks)


def test_a_chat_model_gets_them_where_its_runtime_looks(tmp_path, tiny_model):
    import onnxruntime_genai as og

    import coldpress

    pressed = coldpress.optimize(
        tiny_model, tmp_path / "pressed", precision="int4", no_verify=True, cache_dir=tmp_path / "cache"
    )
    assert pressed.model.format == "onnx"
    options = {"intra_op_num_threads": 1, "graph_optimization_level": "extended", "execution_mode": "sequential"}
    made = run_pass(
        "session_options", tmp_path / "pressed", config_entries={"session.intra_op.allow_spinning": "0"}, **options
    )
    decoder = json.loads((made.path / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["session_options"]["intra_op_num_threads"] == 1
    assert decoder["session_options"]["graph_optimization_level"] == "ORT_ENABLE_EXTENDED"
    assert "execution_mode" not in decoder["session_options"]
    og.Model(str(made.path))
    assert "report.json" not in files(made.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "no option"), ({"intra_op_num_threads": -1}, "below zero"),
     ({"inter_op_num_threads": 2, "execution_mode": "sequential"}, "no effect")],
)  # fmt: skip
def test_options_without_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ColdpressError, match=message):
        run_pass("session_options", saved(dense(), tmp_path / "source"), **options)


def test_tuning_keeps_a_combination_that_it_measured(tmp_path):
    source = saved(dense(), tmp_path / "source")
    made = run_pass("session_params_tuning", source, Target(threads=2), rounds=2, runs=3)
    table = made.provenance.session.tried
    assert [one.options["intra_op_num_threads"] for one in table].count(1) == 2
    assert len(table) == 4 and all(one.median_ms > 0 and one.turns >= 1 for one in table)
    assert read_options(made.path) in [one.options for one in table]
    default = next(one for one in table if one.options["graph_optimization_level"] == "all"
                   and one.options["intra_op_num_threads"] == 2)  # fmt: skip
    kept = next(one for one in table if one.options == read_options(made.path))
    assert kept.median_ms <= default.median_ms


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optimization_levels": ("al",)}, "optimization_levels"), ({"intra_threads": (0,)}, "1 or more"),
     ({"execution_modes": ()}, "names nothing")],
)  # fmt: skip
def test_grids_without_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ColdpressError, match=message):
        run_pass("session_params_tuning", saved(dense(), tmp_path / "source"), **options)
