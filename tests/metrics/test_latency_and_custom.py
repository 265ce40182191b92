"""Times of single runs, and numbers of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.metrics.custom import Custom
from coldpress.metrics.latency import Latency
from coldpress.models.model import Model
from coldpress.parts import Context, DataSource, Value, schema
from coldpress.target import Target
from tests.tiny_graphs import write_text_classifier


@pytest.fixture
def here(tmp_path: Path) -> Context:
    return Context(tmp_path / "scratch", Target(threads=1))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(write_text_classifier(tmp_path / "text", np.zeros((40, 2))), "onnx", "text")


@pytest.mark.parametrize("io_binding", [False, True])
def test_all_numbers_are_given_and_in_order(model, here, io_binding):
    found = Latency(warmup=1, repeats=20, io_binding=io_binding).measure(model, here)
    assert set(Latency.values) <= set(found)
    order = ["min", "p50", "p75", "p90", "p95", "p99", "p999", "max"]
    times = [found[f"latency_{name}_ms"] for name in order]
    assert times == sorted(times) and times[0] > 0
    assert found["throughput_p95"] == pytest.approx(1000 / found["latency_p95_ms"])
    assert found["throughput_min"] == pytest.approx(1000 / found["latency_max_ms"])
    assert found["inputs"] == {"input_ids": [1, 128], "attention_mask": [1, 128]} and found["threads"] == 1


def test_throughput_counts_the_samples_of_the_batch(model, here):
    data = DataSource("synthetic", {"batch_size": 4, "sizes": {"sequence": 3}})
    found = Latency(data=data, warmup=0, repeats=3).measure(model, here)
    assert found["inputs"]["input_ids"] == [4, 3]
    assert found["throughput_p50"] == pytest.approx(4000 / found["latency_p50_ms"])


def test_a_hugging_face_folder_is_timed_by_transformers(tiny_source, here):
    data = DataSource("synthetic", {"sizes": {"sequence": 8}})
    assert Latency(data=data, warmup=0, repeats=2).measure(tiny_source, here)["latency_min_ms"] > 0
    with pytest.raises(ColdpressError, match="io_binding is for ONNX models"):
        Latency(data=data, io_binding=True).measure(tiny_source, here)


def test_a_decoder_is_timed_on_a_prompt(pressed, context):
    data = DataSource("synthetic", {"sizes": {"sequence_len": 8, "sequence_length": 8, "total_sequence_len": 8}})
    names = {"input_ids": [1, 8], "attention_mask": [1, 8], "position_ids": [1, 8]}
    found = Latency(data=DataSource(data.type, {}), warmup=0, repeats=2).measure(pressed("fp32"), context)
    assert found["latency_min_ms"] > 0 and set(found["inputs"]) <= set(names)


def test_wrong_requests_and_failing_runs_are_said(model, here):
    with pytest.raises(ColdpressError, match="repeats must be at least 1"):
        schema.build(Latency, {"repeats": 0}, "latency")
    beyond = DataSource("synthetic", {"ranges": {"input_ids": [50, 60]}})
    with pytest.raises(ColdpressError, match="ONNX Runtime cannot run"):
        Latency(data=beyond).measure(model, here)


def script(tmp_path: Path, text: str) -> str:
    (tmp_path / "own.py").write_text(text)
    return str(tmp_path / "own.py")


def test_a_function_of_ones_own_gets_the_model_and_where_it_runs(model, here, tmp_path):
    text = (
        "def files(model, target, ending):\n    assert target.threads == 1\n    return len(list(model.glob(ending)))\n"
    )
    metric = Custom(script=script(tmp_path, text), function="files", arguments={"ending": "*.onnx"})
    assert metric.measure(model, here) == {"value": 1.0}
    assert metric.values == {"value": Value("higher")}


def test_with_data_it_gets_the_outputs_batch_by_batch(model, here, tmp_path):
    text = (
        "def spread(batches):\n    widths = [(outputs['logits'].shape, labels, inputs['input_ids'].shape) for outputs,"
        " labels, inputs in batches]\n    assert widths == [((2, 2), None, (2, 128))] * 3, widths\n    return"
        " {'batches': len(widths), 'zero': 0}\n"
    )
    metric = Custom(
        script=script(tmp_path, text),
        function="spread",
        data=DataSource("synthetic", {"batch_size": 2, "max_samples": 6}),
        numbers={"batches": "neither", "zero": "lower"},
        unit="things",
    )
    assert metric.measure(model, here) == {"batches": 3.0, "zero": 0.0}
    assert metric.values["zero"] == Value("lower", "things")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('no luck')", "failed in measured.*RuntimeError: no luck"),
        ("return None", "gives no number 'value'"),
        ("return {'other': 1}", "gives no number 'value', but other: 1"),
        ("return {'value': 1, 'other': 1}", "gives 'other', which is not named"),
        ("return float('nan')", "gives no number 'value'"),
    ],
)
def test_what_is_no_number_is_refused(model, here, tmp_path, body, words):
    text = f"def measured(model, target):\n    {body}\n"
    with pytest.raises(ColdpressError, match=words) as caught:
        Custom(script=script(tmp_path, text), function="measured").measure(model, here)
    assert "not named" in words or caught.value.exit_code == WORK_FAILED


def test_numbers_say_which_way_is_better():
    with pytest.raises(ColdpressError, match=r"numbers.loss is 'small'") as caught:
        schema.build(Custom, {"numbers": {"loss": "small"}}, "custom")
    assert "lower or higher" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [{"evaluate_func": "f", "function": "g"}, {"function": "g", "data_dir": "d"}, {"function": "g", "batch_size": 2}],
)
def test_what_a_function_is_not_called_with_is_refused(options):
    with pytest.raises(ColdpressError, match=r"has no effect (beside|without) evaluate_func"):
        Custom(script="s.py", **options)
