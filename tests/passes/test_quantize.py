"""``quantize``: from a float folder to one that transformers loads, that is pressed bit by bit, and that was
measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.calibration import saliency
from coldpress.models.packed.folder import read_packed
from coldpress.networks.reference import Reference
from tests.packed_folders import logits_of


@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.full)])
@pytest.mark.parametrize("precision", ["int2", pytest.param("int3", marks=pytest.mark.full), "int4", "int8"])
def test_plain_transformers_loads_the_folder(precision, symmetric, tiny_model, quantize, tmp_path):
    report = quantize(tiny_model, algorithm="gptq", precision=precision, symmetric=symmetric)
    ids = np.arange(5, 30)
    [expected] = Reference(tmp_path / "quantized").logits([ids])
    np.testing.assert_allclose(logits_of(tmp_path / "quantized", ids), expected, atol=1e-4)
    assert report.data["quality"]["kl"] < {"int2": 3, "int3": 0.5}.get(precision, 0.1)
    assert len(read_packed(tmp_path / "quantized")) == 14


@pytest.mark.parametrize(
    "form", ["compressed-tensors", *(pytest.param(form, marks=pytest.mark.full) for form in ("gptq", "awq"))]
)
def test_the_codes_are_pressed_as_they_are(form, tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="kquant", format=form)
    pressed = coldpress.optimize(tmp_path / "quantized", tmp_path / "onnx", cache_dir=tmp_path / "cache", head_bits=16)
    stored = [layer for layer in pressed.data["layers"] if layer["algorithm"] == "as stored"]
    assert stored
    assert all(layer["exact"] for layer in stored)
    assert pressed.data["verdict"] == "verified"


@pytest.mark.full
def test_better_algorithms_lose_less(tiny_model, quantize):
    error = {}
    for algorithm in ("rtn", "kquant", "hqq", "awq", "gptq", "autoround", "best"):
        report = quantize(tiny_model, algorithm, algorithm=algorithm, precision="int3")
        layers = report.data["calibration"]["layers"]
        assert len(layers) == 14
        error[algorithm] = None if algorithm in ("rtn", "hqq") else np.mean([layer["output_error"] for layer in layers])
        if error[algorithm] is not None:
            plain = np.mean([layer["rtn_output_error"] for layer in layers])
            assert error[algorithm] < plain
    assert error["best"] < error["gptq"] < error["kquant"]


def test_a_second_algorithm_does_not_run_the_model_again(tiny_model, quantize, tmp_path, monkeypatch):
    quantize(tiny_model, "first", algorithm="gptq")
    from coldpress.networks import layerwise

    def never(*args, **kwargs):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(layerwise.Layerwise, "run", never)
    quantize(tiny_model, "second", algorithm="awq")


@pytest.mark.full
def test_tokens_count_alike_where_nobody_can_weigh_them(tiny_model, quantize, monkeypatch):
    assert quantize(tiny_model, "weighed", algorithm="best").data["calibration"]["weighed"]

    def fails(*args, **kwargs):
        raise ColdpressError("it has no gradient")

    monkeypatch.setattr(saliency, "saliency", fails)
    found = quantize(tiny_model, "alike", algorithm="best", num_samples=5).data
    assert not found["calibration"]["weighed"]
    assert any("count alike: it has no gradient" in note for note in found["source"]["notes"])


@pytest.mark.full
def test_other_data_is_other_work(tiny_model, quantize, tmp_path, text):
    first = quantize(tiny_model, "first", algorithm="gptq").data["calibration"]["digest"]
    changed = tmp_path / "own.jsonl"
    changed.write_text("\n".join(json.dumps({"q": f"{n} plus {n}", "a": str(2 * n)}) for n in range(400)))
    options = {"algorithm": "gptq", "data_files": (str(changed),), "text_template": "{q} is {a}"}
    second = quantize(tiny_model, "second", **options).data["calibration"]["digest"]
    changed.write_text("\n".join(json.dumps({"q": f"{n} minus {n}", "a": "0"}) for n in range(400)))
    third = quantize(tiny_model, "third", **options).data["calibration"]["digest"]
    assert len({first, second, third}) == 3


def test_auto_opt_calibrates_and_presses_at_once(tiny_model, tmp_path, text):
    options = {"data_files": (str(text),), "max_seq_len": 32, "num_samples": 6, "cache_dir": tmp_path / "cache"}
    report = coldpress.optimize(tiny_model, tmp_path / "out", algorithm="gptq", **options).data
    assert [step["name"] for step in report["passes"]] == ["quantize", "press"]
    steps = [timing["step"] for timing in report["timings"]]
    assert steps[0].startswith("calibrate") and steps[-3:] == ["capture the graph", "press the weights", "verify"]
    assert report["calibration"]["tokens"] == 6 * 32
    # compared with the float source, not with what was rounded
    assert 1e-4 < report["quality"]["kl"] < 0.1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Calibration" in page
    assert "model.layers.1.mlp.down_proj" in page


def test_a_folder_is_up_to_date_only_for_the_same_data(tiny_model, quantize, tmp_path):
    rows = tmp_path / "rows.txt"
    options = {"algorithm": "gptq", "data_files": (str(rows),), "no_verify": True, "overwrite": True}
    digests = []
    for words in ("one cat sat on a mat", "two ships sail to the island"):
        rows.write_text("\n".join([words] * 80))
        made, again = quantize(tiny_model, **options), quantize(tiny_model, **options)
        assert (made.up_to_date, again.up_to_date) == (False, True)
        digests.append(made.data["calibration"]["digest"])
    assert digests[0] != digests[1]


def test_the_package_onnx_loads_what_is_pressed(tiny_model, tmp_path):
    import onnx

    coldpress.optimize(tiny_model, tmp_path / "out", cache_dir=tmp_path / "cache", no_verify=True)
    assert onnx.load(tmp_path / "out" / "model.onnx").graph.initializer


@pytest.mark.full
def test_the_card_of_a_folder_says_how_to_load_it(tiny_model, quantize, tmp_path):
    quantize(tiny_model, algorithm="kquant")
    card = (tmp_path / "quantized" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert "library_name: transformers" in card
    assert "coldpress auto-opt -m ." in card
    assert "register" not in card
    quantize(tiny_model, "mixed", algorithm="kquant", overrides=("*.v_proj=int8",))
    mixed = (tmp_path / "mixed" / "README.md").read_text()
    assert "register()" in mixed
    assert "pip install transformers compressed-tensors coldpress" in mixed
    quantize(tiny_model, "gptq", algorithm="kquant", format="gptq")
    assert "pip install transformers optimum gptqmodel" in (tmp_path / "gptq" / "README.md").read_text()


def test_an_onnx_model_stays_one(tiny_model, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "no_verify": True}
    coldpress.optimize(tiny_model, tmp_path / "float", precision="fp32", logits="all", **options)
    report = coldpress.quantize(
        tmp_path / "float", tmp_path / "int4", algorithm="kquant", group_size=32, **options
    ).data
    assert [step["name"] for step in report["passes"]] == ["quantize_onnx"]
    assert {layer["bits"] for layer in report["layers"]} >= {4}
    assert (tmp_path / "int4" / "genai_config.json").exists()
    with pytest.raises(ColdpressError, match="max_size has no effect on an ONNX model"):
        coldpress.quantize(tmp_path / "float", tmp_path / "other", max_size="1MB", **options)
