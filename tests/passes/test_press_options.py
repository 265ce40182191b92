"""Options of the press that say what lies in its folder: names, settings of generation, a further output."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from coldpress.calibration.module_grids import promoted
from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.target import Target


def test_a_graph_has_the_name_and_the_output_that_were_asked_for(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    options = {"precision": "fp32", "filename": "text.onnx", "hidden_states": True, "search": {"max_length": 48}}
    asked = Press(**options)
    asked.check(Model(tiny_model, "hf", ""), Target())
    made = asked.run(Model(tiny_model, "hf", "tiny"), Context(tmp_path, Target(threads=1)))
    assert {"text.onnx", "text.onnx.data"} <= {file.name for file in made.path.iterdir()}
    config = json.loads((made.path / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert decoder["filename"] == "text.onnx" and decoder["outputs"]["hidden_states"] == "hidden_states"
    assert config["search"]["max_length"] == 48 and "do_sample" in config["search"]
    ids = np.array([[5, 7, 9, 11]])
    found = Session(made.path, Target(threads=1)).run({"input_ids": ids})["hidden_states"]
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32").eval()
    import torch

    with torch.no_grad():
        expected = network.model(torch.from_numpy(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert onnx.load(made.path / "text.onnx", load_external_data=False).graph.output[-1].name == "hidden_states"


def test_some_layers_have_eight_bits(tiny_model, tmp_path):
    asked = Press(promote="mixed", block_size=16)
    asked.check(Model(tiny_model, "hf", ""), Target())
    made = asked.run(Model(tiny_model, "hf", "tiny"), Context(tmp_path, Target(threads=1)))
    bits = {layer.name: layer.bits for layer in made.provenance.layers if layer.role == "linear"}
    count = json.loads((tiny_model / "config.json").read_text())["num_hidden_layers"]
    last = f".{count - 1}."
    eight = {name for name, one in bits.items() if one == 8}
    assert {name.rpartition(".")[2] for name in eight if last in name} >= {"down_proj"}
    assert all("down_proj" in name or "v" in name.rpartition(".")[2] for name in eight)
    assert {bits[name] for name in bits if "up_proj" in name} == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promote": "down", "precision": "int8"}, "promote has no effect"),
        ({"promote": "down", "precision": "fp32"}, "promote has no effect"),
        ({"filename": "text"}, "'text' is no name of an ONNX file"),
        ({"filename": "a/b.onnx"}, "is no name of an ONNX file"),
        ({"search": {"max_lenght": 3}}, "there is no 'max_lenght'"),
        ({"search": {"max_length": 3}, "use_ort_genai": False}, "search has no effect"),
    ],
)
def test_names_that_nothing_reads_are_refused(tiny_model, options, message):
    with pytest.raises(ColdpressError, match=message):
        Press(**options).check(Model(tiny_model, "hf", ""), Target())


def test_more_bits_go_where_llama_cpp_gives_them():
    """In 16 layers: the first and the last two, and every third between (src/llama-quant.cpp, use_more_bits)."""
    ends = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    modules = [f"model.layers.{layer}.{end}" for layer in range(16) for end in ends] + ["lm_head"]
    assert promoted("last", modules) == {"lm_head"}
    chosen = {0, 1, 4, 7, 10, 13, 14, 15}
    down = {f"model.layers.{layer}.mlp.down_proj" for layer in chosen}
    assert promoted("down", modules) == {"lm_head", *down}
    assert promoted("mixed", modules) == {"lm_head", *down, *(f"model.layers.{n}.self_attn.v_proj" for n in chosen)}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"filename": "text.onnx"}, "filename has no effect"), ({"search": {"num_beams": 3}}, "search has no effect"),
     ({"hidden_states": True}, "hidden_states has no effect")],
)  # fmt: skip
def test_what_a_pair_of_graphs_has_not_is_refused(tmp_path, options, message):
    settings = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ColdpressError, match=message):
        Press(precision="fp32", **options).check(Model(tmp_path, "hf", ""), Target())
