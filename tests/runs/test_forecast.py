from __future__ import annotations

import json
import re

import pytest

from coldpress.api import optimize_workflow
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.runs.forecast import better, output_bytes, plan, shape_from_config, shape_of
from coldpress.target import Target


def test_the_configuration_alone_gives_the_same_shape_as_the_weights(tiny_model):
    config = json.loads((tiny_model / "config.json").read_text())
    assert shape_from_config(config) == shape_of(Model(tiny_model, "hf", ""))


@pytest.mark.parametrize(
    "options", [{}, {"precision": "int8"}, {"precision": "fp32"}, {"head_bits": 4, "symmetric": True}]
)
def test_the_predicted_size_is_that_of_the_result(tiny_model, tmp_path, options):
    model, press = Model(tiny_model, "hf", "x"), Press(**options)
    press.run(model, Context(tmp_path))
    real = (tmp_path / "model.onnx.data").stat().st_size
    fixed = output_bytes(
        shape_from_config(
            {**json.loads((tiny_model / "config.json").read_text()), "num_hidden_layers": 0, "vocab_size": 0}
        ),
        press,
        Target(),
    )
    predicted = output_bytes(shape_of(model), press, Target()) - fixed
    norms = 5 * 64 * 4  # the tiny rotary tables lie in the graph
    assert predicted == pytest.approx(real - norms, rel=0.02)


def test_the_plan_grows_with_what_is_asked_for(tiny_model):
    small = plan(optimize_workflow(tiny_model, algorithm="kquant", no_verify=True))
    large = plan(optimize_workflow(tiny_model, precision="fp32"))
    assert large["output_bytes"] > small["output_bytes"]
    assert large["seconds"] > small["seconds"] and large["peak_memory_bytes"] > small["peak_memory_bytes"]
    assert small["steps"] == ["press"] and large["steps"] == ["press", "verify"]


def test_what_would_lose_less_is_told_where_that_is_known(tiny_model, tmp_path):
    def told(algorithm: str, precision: str = "int4", calibration: object = None) -> str | None:
        parameters = {"algorithm": algorithm, "precision": precision}
        passes = [{"name": "quantize", "parameters": parameters}, {"name": "press", "parameters": parameters}]
        return better(optimize_workflow(tiny_model, tmp_path), {"passes": passes, "calibration": calibration})

    assert re.match(r"--algorithm best would leave about \d+% of this loss, in about \d+ s\.", told("rtn"))
    assert told("gptq", calibration={"tokens": 1}) is not None
    assert told("best", calibration={"tokens": 1}) is None and told("rtn", "int8") is None
