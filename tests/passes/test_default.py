"""``auto-opt`` when nobody says how weights are rounded: calibrated where that is possible, else as before, and it says
which."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.api import optimize_workflow
from coldpress.data.batches.calibration import windows
from coldpress.networks.layerwise import Layerwise
from coldpress.runs.forecast import plan
from tests.architectures import checkpoint
from tests.conftest import weights, write_tokenizer

ALREADY = "The source is quantized already; its codes are pressed as they are"
WHY = "Rounded without data, as it could not be calibrated: "


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def press(cache, tmp_path):
    """Press a folder without verification; gives the report."""

    def call(folder, name="out", **options):
        return coldpress.optimize(folder, tmp_path / name, cache_dir=cache, no_verify=True, **options).data

    return call


@pytest.fixture
def as_without_data(press, tmp_path):
    """Press a folder by default, which has to give the bytes of ``kquant``; gives the remark that says why."""

    def call(folder, **options):
        report = press(folder, **options)
        press(folder, "plain", algorithm="kquant", **options)
        written, expected = (tmp_path / name / "model.onnx.data" for name in ("out", "plain"))
        assert written.read_bytes() == expected.read_bytes()
        [remark] = [remark for remark in report["source"]["notes"] if remark.startswith((WHY, ALREADY))]
        return remark

    return call


def test_weights_of_four_bits_are_calibrated(tiny_model, press):
    report = press(tiny_model)
    assert [step["name"] for step in report["passes"]] == ["quantize", "press"]
    layers = report["calibration"]["layers"]
    assert {layer["algorithm"] for layer in layers} == {"gptq"}
    assert all(layer["output_error"] < layer["rtn_output_error"] for layer in layers)
    # what the layers of a wider model need is more
    assert report["calibration"]["tokens"] == 512


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"precision": "int8"}, ["press"]),
        ({"precision": "fp32"}, ["press"]),
        ({"algorithm": "kquant"}, ["press"]),
        ({"algorithm": "rtn"}, ["press"]),
        ({"rotation": "quarot"}, ["rotate", "quantize", "press"]),
        ({"rotation": "spinquant"}, ["rotate", "quantize", "press"]),
        ({"adapter_path": ("a",)}, ["quantize", "attach_adapters", "press"]),
    ],
)
def test_other_requests_mean_what_they_meant(options, steps):
    passes = optimize_workflow("some/model", **options).passes
    assert [step.type for step in passes] == steps
    assert all(step.make().data is None for step in passes if step.type == "rotate")


def test_a_folder_with_codes_is_pressed_as_it_is(tiny_model, tmp_path, cache, as_without_data):
    coldpress.quantize(tiny_model, tmp_path / "codes", algorithm="rtn", no_verify=True, cache_dir=cache)
    assert as_without_data(tmp_path / "codes") == ALREADY
    planned = plan(optimize_workflow(tmp_path / "codes", no_verify=True))
    assert planned["steps"] == ["press"] and planned["calibrate_s"] == 0


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("granitemoe", "one tensor holds the matrices of all experts"),
        ("gptj", "GPTJForCausalLM .* cannot be run layer by layer: RuntimeError"),
        ("bert", "cannot be read layer by layer"),
    ],
)
def test_a_network_that_cannot_be_walked(name, why, tmp_path, as_without_data):
    folder = checkpoint(name, tmp_path / "source").folder
    write_tokenizer(folder)
    assert re.search(why, as_without_data(folder, block_size=16))


def test_groups_that_do_not_fit(tiny_model, as_without_data):
    assert "has 64 inputs, which groups of 128 do not divide" in as_without_data(tiny_model, block_size=128)


def test_too_little_memory_for_a_layer(tiny_model, as_without_data, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000_000, total=20_000_000))
    assert "0.0 GB are free" in as_without_data(tiny_model, block_size=64)


def test_inputs_that_overflow(make_model, as_without_data):
    tensors = weights()
    for part in ("up", "gate", "down"):
        tensors[f"model.layers.0.mlp.{part}_proj.weight"] *= 1e14
    why = as_without_data(make_model(tensors=tensors), scale_dtype="float32")
    assert "inputs of model.layers.0.mlp.down_proj are not finite" in why


def test_inputs_that_are_all_zero_are_rounded_without_data_and_the_rest_with(make_model, press):
    tensors = weights()
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 0
    layers = {layer["name"]: layer for layer in press(make_model(tensors=tensors))["calibration"]["layers"]}
    unseen = [name for name, layer in layers.items() if layer["fallback"]]
    assert unseen == [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert {layers[name]["fallback"] for name in unseen} == {"its inputs were all zero"}


def test_data_that_is_named_is_used_or_refused(tiny_model, press, tmp_path):
    file = tmp_path / "one_word.txt"
    file.write_text("\n".join(["again"] * 400))
    report = press(tiny_model, data_files=(str(file),), max_seq_len=64)
    assert report["calibration"]["text"].startswith("one_word.txt")
    assert all(np.isfinite(layer["output_error"]) for layer in report["calibration"]["layers"])
    assert "The calibration text repeats itself" in report["source"]["notes"][-1]
    with pytest.raises(ColdpressError, match=r"missing\.txt"):
        press(tiny_model, "other", data_files=("missing.txt",))
    with pytest.raises(ColdpressError, match="data_files has no effect with --algorithm kquant"):
        press(tiny_model, "other", algorithm="kquant", data_files=(str(file),))


def test_short_contexts_get_short_windows(make_model, press):
    report = press(make_model(max_position_embeddings=128))
    assert report["calibration"]["tokens"] % 128 == 0


def test_a_plan_tells_the_alternatives(tiny_model):
    planned = plan(optimize_workflow(tiny_model, no_verify=True))
    assert planned["steps"] == ["quantize", "press"]
    times = [planned["algorithms"][name]["seconds"] for name in ("rtn", "kquant", "gptq")]
    assert times == sorted(times) and times[-1] == pytest.approx(planned["seconds"])
    losses = [planned["algorithms"][name]["loss"][1] for name in ("rtn", "kquant", "gptq")]
    assert losses == sorted(losses, reverse=True)


def test_whoever_waits_for_a_layer_hears_why_it_does_not_come(tiny_model, tmp_path):
    from coldpress.calibration.grams import GrowingGrams, collect
    from coldpress.models.model import Model
    from coldpress.parts import Context, DataSource

    source = DataSource("calibration_text", {"max_seq_len": 64, "max_samples": 4})
    ids = windows(source, Model(tiny_model, "hf", ""), Context(tmp_path)).ids
    decoder = Layerwise(tiny_model, ids, batch=1)
    (tmp_path / "grams").mkdir()

    def failing(progress):
        def ran(what, done, total):
            progress(what, done, total)
            if done > len(ids):
                raise ColdpressError("the second layer fails")

        return collect(decoder, tmp_path / "grams", progress=ran)

    with pytest.raises(ColdpressError, match="second layer fails"), GrowingGrams(tmp_path / "grams", failing) as grams:
        assert len(grams.get("model.layers.0")) == 4
        grams.get("model.layers.1")
