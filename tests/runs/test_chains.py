"""Passes that rewrite graphs share one load and one save, and all else is as if each had been done alone."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import coldpress
from coldpress import Context, Model, Target
from coldpress.errors import ColdpressError
from coldpress.jobs.job import Before, Job
from coldpress.models.model import content_key
from coldpress.parts.graph_pass import rewrite_in_a_row
from coldpress.runs.chains import chains_of
from coldpress.workflow import Place, Step, Verify, Workflow
from coldpress.workflow.file import load_workflow
from tests.onnx_models import computed, convolutional, dense, files, graph, random, saved

pytestmark = pytest.mark.usefixtures("lab_parts")
GPU = Target("gpu", "CUDAExecutionProvider", 1)
X = np.random.default_rng(7).standard_normal((2, 8)).astype(np.float32)

OPSET = Step("onnx_opset_conversion", {"target_opset": 20})
SIMPLER = Step("onnx_peephole_optimizer")
FIXED = Step("dynamic_to_fixed_shape", {"dim_param": ["batch"], "dim_value": [2]})
HALVES = Step("onnx_float_to_float16")
TYPES = Step("onnx_io_datatype_converter", {"name_pattern": "y", "source_dtype": "float32", "target_dtype": "double"})


def tilt(share: float, **more: object) -> Step:
    return Step("tilt", {"share": share, **more})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(*steps)``: a workflow from an ONNX model, done by a system that logs the jobs it is sent, or ``here``."""
    monkeypatch.setenv("LAB_LOG", str(tmp_path / "lab.log"))
    source = saved(dense(), tmp_path / "source", external=True)

    def _run(*steps, here=False, **verify):
        system, output = Place("local" if here else "second"), str(tmp_path / "out")
        workflow = Workflow(str(source), steps, output=output, system=system, metrics=(), verify=Verify(**verify))
        return coldpress.run(workflow, cache_dir=tmp_path / "cache", overwrite=True)

    return _run


def sent(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "lab.log").read_text().splitlines()
    return [line.removeprefix("sent ") for line in lines if line.startswith("sent ")]


def test_neighbours_are_one_job_whose_result_is_opened_once(run, tmp_path):
    report = run(OPSET, tilt(0.05), SIMPLER, FIXED)
    assert sent(tmp_path) == ["dynamic_to_fixed_shape", "graph_divergence"]
    assert report.data["verdict"] == "verified"
    assert report.data["quality"]["relative"] == pytest.approx(0.05, rel=1e-3)
    assert report.data["quality"]["relative_limit"] == pytest.approx(0.1003), "what all of them may lose together"
    expected, got = (computed(tmp_path / name, {"x": X})[0] for name in ("source", "out"))
    assert np.allclose(got, 1.05 * expected, rtol=1e-5)


def test_the_report_tells_of_each_pass(run, tmp_path):
    report = run(OPSET, tilt(0.05), SIMPLER, here=True)
    passes = report.data["passes"]
    assert [one["name"] for one in passes] == [OPSET.type, "tilt", SIMPLER.type]
    assert [one["remarks"] for one in passes] == [
        ["model.onnx: opset 17 became 20"],
        ["model.onnx: tilted by 0.05"],
        ["model.onnx: 5 nodes became 5"],
    ]
    assert report.data["source"]["notes"] == [remark for one in passes for remark in one["remarks"]]
    assert len({(one["parent"], one["model"]) for one in passes}) == 1, "models between them are not there"
    assert sum(one["seconds"] for one in passes) <= report.data["seconds"]
    assert [one["step"] for one in report.data["timings"]] == [OPSET.type, "tilt", SIMPLER.type, "verify"]


def test_a_chain_is_found_in_the_cache_as_a_whole(run, tmp_path):
    first = run(OPSET, tilt(0.05), here=True)
    (tmp_path / "out/report.json").unlink()
    again = run(OPSET, tilt(0.05))
    assert not sent(tmp_path) and not any(one["cached"] for one in first.data["passes"])
    assert all(one["cached"] for one in again.data["passes"]) and again.model.key == first.model.key
    assert [one["remarks"] for one in again.data["passes"]] == [one["remarks"] for one in first.data["passes"]]
    run(OPSET, tilt(0.06))
    assert sent(tmp_path) == ["tilt", "graph_divergence"], "what comes before is done once more, in memory"


def test_the_pass_that_broke_the_model_is_named_though_others_shared_its_save(run, tmp_path):
    report = run(OPSET, tilt(0.3), SIMPLER)
    assert report.exit_code == 3
    [reason] = report.data["reasons"]
    assert reason.startswith("tilt: output 'y' of model.onnx differs by 0.3") and "a tenth" in reason
    assert (tmp_path / "out/model.onnx").exists()


def test_losses_that_each_pass_may_have_and_all_together_may_not_are_said_of_all(run):
    report = run(tilt(0.05), tilt(0.06), tolerance="relative=0.08")
    assert report.exit_code == 3
    [reason] = report.data["reasons"]
    assert reason.startswith("tilt and tilt: output 'y' of model.onnx differs by 0.11")


@pytest.mark.parametrize(
    ("breaks", "message"), [("open", "tilt wrote cannot"), ("run", "tilt .* the graph before runs")]
)
def test_what_does_not_open_or_run_is_not_written_and_the_pass_is_named(run, tmp_path, breaks, message):
    with pytest.raises(ColdpressError, match=message) as caught:
        run(OPSET, tilt(0.0, breaks=breaks))
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()
    assert sent(tmp_path)[2:] == [OPSET.type, "graph_divergence", "tilt", "graph_divergence"]


def test_a_pass_is_checked_on_what_those_before_it_made(run, tmp_path):
    with pytest.raises(ColdpressError, match="no input has a dimension 'batch'") as caught:
        run(FIXED, OPSET, FIXED)
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_who_needs_a_file_or_means_to_change_results_is_alone():
    static, meant = Step("onnx_static_quantization"), tilt(0.1, means_it=True)
    steps = [OPSET, SIMPLER, static, FIXED, meant, TYPES, SIMPLER]
    assert chains_of(steps) == [(OPSET, SIMPLER), (static,), (FIXED,), (meant,), (TYPES, SIMPLER)]


@pytest.mark.full
def test_what_points_of_a_search_share_is_done_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_LOG", str(tmp_path / "lab.log"))
    open_tilt = {"type": "tilt", "parameters": {"share": {"choice": [0.01, 0.02, 0.03]}}}
    workflow = load_workflow(
        {
            "model": str(saved(dense(), tmp_path / "source")),
            "passes": [OPSET.type, SIMPLER.type, open_tilt, {"type": FIXED.type, "parameters": FIXED.parameters}],
            "metrics": [{"type": "size", "goals": {"model_bytes": {"priority": 1}}}],
            "system": {"type": "second", "parameters": {"workers": 1}},
            "output": str(tmp_path / "out"),
        }
    )
    report = coldpress.run(workflow, cache_dir=tmp_path / "cache")
    assert len(report.data["search"]["points"]) == 3
    done = [part for part in sent(tmp_path) if part in (OPSET.type, SIMPLER.type, FIXED.type, "tilt")]
    assert done == [SIMPLER.type, *[FIXED.type] * 3]
    best = replace(load_workflow(str(tmp_path / "out/best.yaml")), output=str(tmp_path / "alone"))
    alone = coldpress.run(best, cache_dir=tmp_path / "cache")
    assert (tmp_path / "alone/model.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()
    assert alone.exit_code == 0


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("build", [dense, convolutional])
def test_the_bytes_are_those_of_passes_done_one_by_one(tmp_path, build, external):
    source = saved(build(), tmp_path / "source", external)
    steps = [step.make() for step in (HALVES, SIMPLER, FIXED, OPSET)]
    for order, passes in enumerate(permutations(steps)):
        alone, together = Model(source, "onnx", ""), tmp_path / f"{order}"
        together.mkdir()
        for place, one in enumerate(passes):
            (folder := tmp_path / f"{order}-{place}").mkdir()
            alone = one.run(alone, Context(folder, GPU))
        made, _ = rewrite_in_a_row(passes, Model(source, "onnx", ""), Context(together, GPU))
        assert made.provenance == alone.provenance and made.provenance.precision == "fp16"
        assert content_key(made.path) == content_key(alone.path)


def test_graphs_of_several_components_are_each_rewritten_and_what_is_beside_them_stays(tmp_path):
    source = saved(dense(), tmp_path / "source", external=True)
    saved(convolutional(), source / "vision")
    (tmp_path / "made").mkdir()
    made, shares = rewrite_in_a_row(
        [OPSET.make(), FIXED.make()], Model(source, "onnx", ""), Context(tmp_path / "made", Target(threads=1))
    )
    assert shares[0].remarks == ("model.onnx: opset 17 became 20", "vision/model.onnx: opset 17 became 20")
    assert files(made.path) == {"model.onnx", "vocabulary.txt"}
    assert (made.path / "vision/vocabulary.txt").exists()
    for folder, shape in ((source, [2, 8]), (source / "vision", [2, 3, 9, 7])):
        feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        expected, got = computed(folder, feed), computed(made.path / folder.relative_to(source), feed)
        assert np.allclose(expected[0], got[0], atol=1e-5)


def test_weights_that_share_their_bytes_still_do(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "two"], ["y"], "second"),
    ]
    ends = [("x", TensorProto.FLOAT, ["batch", 64])], [("y", TensorProto.FLOAT, ["batch", 64])]
    source = saved(graph(nodes, {"one": random(64, 64), "two": random(64, 64)}, *ends), tmp_path / "source", True)
    model = onnx.load(source / "model.onnx", load_external_data=False)
    del model.graph.initializer[1].external_data[:]
    model.graph.initializer[1].external_data.extend(model.graph.initializer[0].external_data)
    onnx.save(model, source / "model.onnx")
    (tmp_path / "made").mkdir()
    rewrite_in_a_row([FIXED.make()], Model(source, "onnx", ""), Context(tmp_path / "made"))
    assert (tmp_path / "made/model.onnx.data").stat().st_size == 64 * 64 * 4
    feed = {"x": np.ones((2, 64), np.float32)}
    assert np.allclose(computed(source, feed)[0], computed(tmp_path / "made", feed)[0])


def test_a_job_of_several_passes_has_a_key_of_their_contents_and_can_be_shipped(tmp_path):
    here = Path(saved(dense(), tmp_path / "here"))
    model = Model(here, "onnx", content_key(here))

    def job(*steps: Step) -> Job:
        *before, last = steps
        earlier = tuple(Before(one.type, one.spelled_out().parameters) for one in before)
        return Job("pass", last.type, last.spelled_out().parameters, model, before=earlier)

    keys = [job(*steps).key for steps in ([SIMPLER], [OPSET, SIMPLER], [FIXED, SIMPLER], [OPSET, FIXED, SIMPLER])]
    assert len(set(keys)) == 4
    other = Step(OPSET.type, {"target_opset": 21})
    assert job(other, SIMPLER).key != job(OPSET, SIMPLER).key
    sent_job = Job.from_json(json.loads(json.dumps(job(OPSET, SIMPLER).to_json())))
    assert sent_job.key == job(OPSET, SIMPLER).key and sent_job.before[0].part == OPSET.type
    assert sent_job.moved(lambda path: tmp_path / "there").model.path == tmp_path / "there"
