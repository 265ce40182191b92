"""No tensor of a checkpoint is lost on its way into the graph, and no weight of the graph is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.measuring.encoder_decoder import EncoderDecoder
from coldpress.models.model import Model
from coldpress.networks.layerwise import Layerwise
from coldpress.networks.reference import Reference
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.target import Target
from tests.architectures import checkpoint
from tests.conftest import weights

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def press(tmp_path: Path) -> Callable[[Path], Model]:
    def run(folder: Path) -> Model:
        (tmp_path / "out").mkdir()
        return Press(precision="fp32", logits="all").run(Model(folder, "hf", "x"), Context(tmp_path / "out"))

    return run


def change(folder: Path, **tensors: np.ndarray | None) -> Path:
    """Add tensors to a checkpoint, whose names have ``__`` for a dot, or take them out."""
    stored = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        stored[name.replace("__", ".")] = value  # type: ignore[assignment]
    kept = {name: value for name, value in stored.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_scales_that_nothing_reads_stop_the_press_by_name(make_model, press):
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors = {**weights(), name: np.full((128, 1), 0.5, np.float32)}
    with pytest.raises(ColdpressError, match=f"does not read '{name}'"):
        press(make_model(tensors=tensors))


def test_a_bias_of_logits_is_part_of_the_graph(press, tmp_path: Path):
    """transformers adds it to what the head gives."""
    sizes = {
        "d_model": 32,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "vocab_size": 320,
        "max_position_embeddings": 64,
    }
    layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = transformers.BartConfig(**sizes, **layers)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    name = "final_logits_bias"
    zeros = load_file(tmp_path / "bart/model.safetensors")[name]
    assert zeros.shape == (1, 320) and not zeros.any()
    folder = change(tmp_path / "bart", **{name: zeros + np.arange(320, dtype=np.float32) / 32})
    graphs = EncoderDecoder(press(folder).path, Target(threads=1))
    asked = np.arange(5, 12)[None]
    given = {"input_ids": asked, "attention_mask": np.ones_like(asked), "decoder_input_ids": np.arange(2, 8)[None]}
    with torch.no_grad():
        network = transformers.BartForConditionalGeneration.from_pretrained(folder).eval()
        expected = network(**{name: torch.from_numpy(array) for name, array in given.items()}).logits
    np.testing.assert_allclose(graphs.run(given)["logits"], expected, atol=1e-4)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["model.layers.1.mlp.up_proj.bias"], marks=pytest.mark.full),
        [f"model.layers.{layer}.mlp.{part}_proj.bias" for layer in (0, 1) for part in ("gate", "up", "down")],
        pytest.param(["model.layers.0.self_attn.q_proj.bias"], marks=pytest.mark.full),
        [name.replace("layers.1", "layers.2") for name in weights() if "layers.1" in name],
        ["score.weight"],
    ],
    ids=["bias", "every bias", "bias of attention", "layer", "head"],
)
def test_what_transformers_has_no_place_for_is_left_out_and_named(make_model, press, names: list[str]):
    def some(name: str) -> np.ndarray:
        layer = weights().get(name.replace("layers.2", "layers.1"))
        rows = 64 if "down" in name or "attn" in name else 128
        return np.full(rows, 0.5, np.float32) if layer is None else layer

    extra = {name: some(name) for name in names}
    folder, window = make_model(tensors={**weights(), **extra}), np.arange(5, 20)
    loaded, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert found["unexpected_keys"] == set(names)
    pressed = press(folder)
    [remark] = [one for one in pressed.provenance.remarks if "transformers does not load" in one]
    assert sorted(names)[0] in remark
    expected = loaded(torch.tensor(window)[None]).logits[0].detach().numpy()
    np.testing.assert_allclose(Decoder(pressed.path).logits(window), expected, atol=1e-4)


def test_what_transformers_does_not_load_either_is_left_out(make_model, press):
    stored = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "model.layers.0.mlp.gate_proj.bias": np.zeros(128, np.float32),
        "lm_head.weight": weights()[EMBEDDING],
    }
    folder = make_model(tensors={**weights(), **stored})
    window = np.arange(5, 20)
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(window)[None]).logits[0]
    np.testing.assert_allclose(Decoder(press(folder).path).logits(window), expected.detach().numpy(), atol=1e-4)


def test_the_heads_of_a_graph_of_hidden_states_are_named(press, tmp_path: Path):
    pressed = press(checkpoint("bert", tmp_path / "bert").folder)
    assert any("'pooler.dense.weight'" in remark for remark in pressed.provenance.remarks)


def test_a_tensor_that_a_weight_is_computed_from_is_read(press, tmp_path: Path):
    press(checkpoint("gpt_neox", tmp_path / "gpt_neox").folder)


def test_weights_of_another_size_than_the_configuration_says_are_refused(press, tmp_path: Path):
    folder = checkpoint("phi3", tmp_path / "phi3").folder
    name = "model.layers.1.self_attn.qkv_proj.weight"
    longer = np.vstack([load_file(folder / "model.safetensors")[name], np.ones((16, 64), np.float32)])
    with pytest.raises(ColdpressError, match=r"do not fit config.json: .* 144, expected 128"):
        press(change(folder, **{name.replace(".", "__"): longer}))


def test_a_weight_that_the_checkpoint_lacks_is_not_made_up(press, tmp_path: Path):
    folder = checkpoint("vit", tmp_path / "vit").folder
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith("cls_token")]
    with pytest.raises(ColdpressError, match=r"no tensor for '.*cls_token'"):
        press(change(folder, **{name.replace(".", "__"): None for name in names}))


def test_a_tied_head_with_values_of_its_own_is_kept_as_transformers_keeps_it(make_model, press):
    own = weights(3)[EMBEDDING]
    folder, window = make_model(tensors={**weights(), "lm_head.weight": own}), np.arange(5, 20)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    with torch.no_grad():
        expected = (
            transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(window)[None]).logits[0].numpy()
        )
    np.testing.assert_allclose(Decoder(press(folder).path).logits(window), expected, atol=1e-4)
    np.testing.assert_allclose(next(Reference(folder).logits([window])), expected, atol=1e-4)
    layers = Layerwise(folder, window[None])
    assert not layers.is_tied
    np.testing.assert_array_equal(layers.head_weight().numpy(), own)


def test_names_without_the_prefix_of_the_base_model_are_read_as_transformers_reads_them(make_model, press):
    tensors = {name.removeprefix("model."): value for name, value in weights().items()}
    folder, window = make_model(tensors=tensors), np.arange(5, 20)
    with torch.no_grad():
        expected = (
            transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(window)[None]).logits[0].numpy()
        )
    np.testing.assert_allclose(next(Reference(folder).logits([window])), expected, atol=1e-4)
    np.testing.assert_allclose(Decoder(press(folder).path).logits(window), expected, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["opt", *(pytest.param(name, marks=pytest.mark.full) for name in ("gpt2", "distilbert"))]
)
def test_names_of_another_time_are_read_as_transformers_reads_them(press, tmp_path: Path, name: str):
    """Saved from the base model alone, or with the names of the first BERT."""
    made = checkpoint(name, tmp_path / name)
    file, prefix = made.folder / "model.safetensors", f"{made.model.base_model_prefix}."
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"} if name == "distilbert" else {}
    tensors = load_file(file)
    renamed = {_replaced(one.removeprefix(prefix), older): value for one, value in tensors.items()}
    assert set(renamed) != set(tensors)
    save_file(renamed, file, metadata={"format": "pt"})
    _, found = type(made.model).from_pretrained(made.folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    pressed = press(made.folder)
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "usual").mkdir()
    usual = Press(precision="fp32", logits="all").run(Model(made.folder, "hf", "x"), Context(tmp_path / "usual"))
    for data in ("model.onnx.data", "model.onnx"):
        assert (pressed.path / data).read_bytes() == (usual.path / data).read_bytes()


def _replaced(name: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        name = name.replace(old, new)
    return name


def test_numbers_that_float16_cannot_hold_are_refused_by_name(make_model, tmp_path: Path):
    name = "model.layers.1.input_layernorm.weight"
    folder = make_model(tensors={**weights(), name: np.full(64, 70000, np.float32)})
    (tmp_path / "out").mkdir()
    context = Context(tmp_path / "out", Target("gpu", "CUDAExecutionProvider", 1))
    with pytest.raises(ColdpressError, match=rf"'{name}' .* goes to 70000, float16 only to 65504") as caught:
        Press(precision="fp16").run(Model(folder, "hf", "x"), context)
    assert "bf16" in (caught.value.hint or "")
    Press(precision="bf16").run(Model(folder, "hf", "x"), replace(context, scratch=tmp_path))


def test_a_walk_to_the_weights_of_a_product_visits_a_tensor_once(tmp_path: Path):
    """Forty joins of a tensor with itself: as many ways through them as 2 to the power of forty."""
    import onnx
    from onnx import helper, numpy_helper

    joins = [helper.make_node("Concat", [f"j{i}", f"j{i}"], [f"j{i + 1}"], axis=0) for i in range(40)]
    nodes = [
        *joins,
        helper.make_node("Concat", ["j40", "b.weight"], ["whole"], axis=0),
        helper.make_node("Transpose", ["whole"], ["turned"]),
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "turned"], ["logits"]),
    ]
    arrays = {"j0": np.zeros((0, 4)), "b.weight": np.ones((3, 4)), "table": np.ones((9, 4))}
    ids = helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [1, "n"])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, "n", 3])
    weights_ = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "walk", [ids], [logits], weights_)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert Decoder(tmp_path).linears() == {"logits": ("lm_head",)}
