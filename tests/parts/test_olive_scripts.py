"""Scripts that were written for Olive, run without it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import coldpress
from coldpress.errors import ColdpressError
from coldpress.models.model import Model, content_key
from coldpress.parts import Context, DataSource, find, schema
from coldpress.target import Target
from tests import onnx_models

SCRIPT = """
import torch
from olive.data.registry import Registry
from olive.constants import Framework

print("loading", end="")

class Rows:
    def __init__(self, count, scale):
        self.count, self.scale = count, scale
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return {"x": torch.full((8,), float(index * self.scale))}, torch.tensor(index % 2)

@Registry.register_dataset()
def numbers(count, scale=1):
    return Rows(count, scale)

@Registry.register_pre_process("Doubled")
def twice(rows, factor, **_):
    return Rows(rows.count, rows.scale * factor)

@Registry.register_post_process()
def largest(output, **_):
    return torch.argmax(output, dim=-1) * 0 + 1

def create_dataloader(data_dir, batch_size, **kwargs):
    rows = Rows(kwargs["count"], 1)
    return torch.utils.data.DataLoader(rows, batch_size=batch_size)

def evaluate(model, device, execution_providers, offset=0):
    session = model.prepare_session(device=device, execution_providers=execution_providers)
    assert device == "cpu" and execution_providers == ["CPUExecutionProvider"]
    return {"mean": len(session.get_inputs()) + offset, "extra": 2}
"""
NEW = {"load_dataset": {"type": "numbers", "count": 5}, "pre_process_data": {"type": "doubled", "factor": 2}}
OLD = {"dataloader_func": "create_dataloader", "func_kwargs": {"count": 5}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scripts")
    (place / "user_script.py").write_text(SCRIPT)
    onnx_models.saved(onnx_models.dense(), place / "dense")
    return place


def batches(folder, **parameters):
    model = Model(folder / "dense", "onnx", content_key(folder / "dense"))
    source = DataSource("user_script", {"script": str(folder / "user_script.py"), "batch_size": 2, **parameters})
    return list(source.batches(model, Context(folder, Target(threads=1))))


@pytest.mark.parametrize(("how", "scale"), [(NEW, 2), (OLD, 1)], ids=["registered", "dataloader_func"])
def test_batches_are_those_that_the_script_makes(folder, how, scale):
    found = batches(folder, **how)
    assert [one.size for one in found] == [2, 2, 1]
    assert np.array_equal(np.concatenate([one.inputs["x"][:, 0] for one in found]), np.arange(5) * scale)
    assert np.array_equal(np.concatenate([one.labels for one in found]), np.arange(5) % 2)


def test_a_name_that_the_script_lacks_is_told_with_the_closest(folder):
    with pytest.raises(ColdpressError, match="has no function 'nombers'") as caught:
        batches(folder, load_dataset={"type": "nombers"})
    assert "numbers" in caught.value.hint


def test_what_a_script_imports_of_olive_beyond_that_is_said_to_be_missing(folder):
    (folder / "more.py").write_text("from olive.workflows import run\ndef load(*_): pass\n")
    with pytest.raises(ColdpressError, match=r"ModuleNotFoundError: No module named .olive\.workflows"):
        batches(folder, script=str(folder / "more.py"), dataloader_func="load")


def test_answers_are_read_off_the_outputs_by_the_scripts_function(folder):
    parameters = {
        "data": {"type": "user_script", "parameters": {"script": str(folder / "user_script.py"), **NEW}},
        "script": str(folder / "user_script.py"),
        "function": "largest",
    }
    made = schema.build(find("metrics", "accuracy"), parameters)
    model = Model(folder / "dense", "onnx", "")
    assert made.measure(model, Context(folder, Target(threads=1)))["accuracy"] == pytest.approx(0.4)  # 2 of 5 are ones


def test_a_function_that_evaluates_a_model_gets_it_as_olive_gives_it(folder):
    parameters = {
        "script": str(folder / "user_script.py"),
        "evaluate_func": "evaluate",
        "arguments": {"offset": 1},
        "numbers": {"mean": "higher", "extra": "lower"},
    }
    made = schema.build(find("metrics", "custom"), parameters)
    found = made.measure(Model(folder / "dense", "onnx", ""), Context(folder, Target(threads=1)))
    assert found == {"mean": 2.0, "extra": 2.0}


def test_a_configuration_of_olive_with_a_script_runs_and_its_prints_stay_out(folder, tmp_path, capfd):
    script = str(folder / "user_script.py")
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(folder / "dense")},
        "data_configs": [
            {
                "name": "own",
                "type": "DataContainer",
                "user_script": script,
                "load_dataset_config": {"type": "numbers", "params": {"count": 4}},
                "dataloader_config": {"batch_size": 2},
            }
        ],
        "evaluators": {
            "e": {
                "metrics": [
                    {
                        "name": "own",
                        "type": "custom",
                        "sub_types": [{"name": "mean", "higher_is_better": True}, {"name": "extra"}],
                        "user_config": {"user_script": script, "evaluate_func": "evaluate"},
                    }
                ]
            }
        },
        "passes": {"q": {"type": "OnnxStaticQuantization", "data_config": "own"}},
        "evaluator": "e",
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    report = coldpress.run(file).data
    assert report["custom"] == {"mean": 1.0, "extra": 2.0}
    assert "loading" not in capfd.readouterr().out
