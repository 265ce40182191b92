"""Several models side by side: in turns where times are taken, with data of a workflow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.jobs.job import Job, Result, silent
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor, System
from coldpress.models.model import Model, content_key
from coldpress.runs.engine import Console
from coldpress.runs.evaluation import benchmark, evaluate, flat, in_turns
from coldpress.target import Target
from coldpress.workflow import Measure
from coldpress.workflow.file import load_metrics
from tests.tiny_graphs import write_text_classifier, write_word_tokenizer

TARGET = Target(threads=1)
QUICK = {"warmup": 0, "repeats": 3, "data": {"type": "synthetic", "parameters": {"sizes": {"sequence": 4}}}}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Two spam detectors; the second one takes everything for spam."""
    made = []
    for name, ham in (("good", 1.0), ("bad", -9.0)):
        folder = tmp_path / name
        vocabulary = write_word_tokenizer(folder, ("win", "hello"))
        write_text_classifier(folder, np.array([[0, 4] if word == "win" else [ham, 0] for word in vocabulary]))
        made.append(str(folder))
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "sms.csv").write_text("text,label\nwin win,spam\nhello,ham\n")
    file = tmp_path / "metrics.yaml"
    file.write_text(
        json.dumps(
            {
                "data": {
                    "sms": {
                        "type": "text_classification",
                        "parameters": {"data_files": [str(tmp_path / "sms.csv")], "label_names": ["ham", "spam"]},
                    }
                },
                "metrics": [{"type": "accuracy", "parameters": {"data": "sms"}}, "size"],
            }
        )
    )
    return file


def test_models_are_measured_with_the_metrics_and_data_of_a_file(models, config, tmp_path):
    measures = load_metrics(config)
    rows = evaluate(models, measures, target=TARGET, store=Store(tmp_path / "store"))
    assert [row["accuracy"]["accuracy"] for row in rows] == [1.0, 0.5]
    shown, columns = flat(rows, measures)
    assert list(columns) == ["accuracy", "model_bytes", "bits_per_weight"]
    assert shown[1]["accuracy"] == 0.5


def test_what_the_data_files_hold_decides_the_key(models, config, tmp_path):
    [measure, _] = load_metrics(config)
    model = Model(Path(models[0]), "onnx", content_key(Path(models[0])))

    def key() -> str:
        return Job("metric", measure.type, measure.parameters, model, TARGET).key

    before = key()
    assert key() == before
    (tmp_path / "sms.csv").write_text("text,label\nwin win,spam\nhello,spam\n")
    assert key() != before


def test_times_are_taken_in_turns_and_never_from_the_store(models, tmp_path):
    said: list[str] = []
    rows = evaluate(
        models,
        [Measure("latency", QUICK), Measure("latency", {**QUICK, "repeats": 2})],
        target=TARGET,
        store=Store(tmp_path / "store"),
        console=Console(said.append),
    )
    first, second = rows[0]["latency"], rows[0]["latency-2"]
    assert len(first["latency_p50_ms"]["rounds"]) == 3 and second["latency_p50_ms"]["value"] > 0
    assert first["inputs"] == {"input_ids": [1, 4], "attention_mask": [1, 4]}
    assert not list(Store(tmp_path / "store").entries())
    _, columns = flat(rows, [Measure("latency", QUICK), Measure("latency", QUICK)])
    assert "latency_p50_ms" in columns and "latency-2 latency_p50_ms" in columns


class Remembering(System):
    """Does nothing, and remembers the models of its jobs in the order in which they came."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def map(self, jobs, store, progress=silent):
        for job in jobs:
            self.order.append(job.model.path.name)
            yield job, Result(1.0, False, numbers={"latency_p50_ms": 1.0})


def test_every_other_round_goes_backwards(models, tmp_path):
    system = Remembering()
    jobs = [Job("metric", "latency", QUICK, Model(Path(name), "onnx", name), TARGET) for name in models]
    assert in_turns(jobs, 3, Executor(system, Store(tmp_path)))[0]["latency_p50_ms"]["rounds"] == [1.0] * 3
    assert system.order == ["good", "bad", "bad", "good", "good", "bad"]


def test_the_benchmark_takes_any_metric_that_takes_times(models):
    rows = benchmark(models, metric="latency", rounds=2, target=TARGET, **QUICK)
    assert [row["name"] for row in rows] == models and len(rows[0]["latency_avg_ms"]["rounds"]) == 2
    with pytest.raises(ColdpressError, match="'size' takes no times") as caught:
        benchmark(models, metric="size", target=TARGET)
    assert "generation or latency" in caught.value.hint
    with pytest.raises(ColdpressError, match="there is no 'new_tokens' here"):
        benchmark(models, metric="latency", target=TARGET, new_tokens=4)


def test_a_file_without_metrics_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("data: {}\n")
    with pytest.raises(ColdpressError, match="names no metrics"):
        load_metrics(tmp_path / "empty.yaml")
