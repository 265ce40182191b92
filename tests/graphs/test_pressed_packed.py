"""Quantized folders come out with the very codes, scales and zero points that they have, and compute what these say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.models.model import Model
from coldpress.models.packed import awq, embedding, gptq
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.pack import pack, pack_zero_points
from coldpress.target import Target
from tests.conftest import weights
from tests.packed_folders import FORMATS, Packed, pack_folder, rounded, transformers_logits

WINDOW = np.arange(5, 25)
#: an exact computation: nothing but the codes of the checkpoint is rounded
EXACT: dict[str, Any] = {"head_bits": 16, "embedding_bits": 16, "logits": "all"}
PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "tie_word_embeddings": False}


def press(folder: Path, output: Path, target: Target = Target(), **options: Any) -> Model:
    output.mkdir()
    made, model = Press(**options), Model(folder, "hf", "x")
    made.check(model, target)
    return made.run(model, Context(output, target))


def stored_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The initializers of a pressed model, from its data file."""
    graph = onnx.load(folder / "model.onnx").graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def assert_same_codes(tensors: dict[str, np.ndarray], name: str, parts: list[Codes]) -> None:
    """The parts, one above the other, are bit for bit what the graph has for ``name``."""
    bits, rows = parts[0].grid.bits, sum(len(part.codes) for part in parts)
    codes = np.concatenate([pack(part.codes, bits) for part in parts])
    np.testing.assert_array_equal(tensors[f"{name}.codes"].reshape(rows, -1), codes.reshape(rows, -1))
    scales = np.concatenate([part.scales for part in parts])
    kept = tensors[f"{name}.scales"]
    assert kept.astype(np.float32).reshape(rows, -1).tobytes() == scales.tobytes()
    if all(part.zero_points is None for part in parts):
        assert f"{name}.zero_points" not in tensors
        return
    middles = [np.full(part.scales.shape, part.grid.middle, np.uint8) for part in parts]
    zeros = [
        middle if part.zero_points is None else part.zero_points for part, middle in zip(parts, middles, strict=True)
    ]
    packed = pack_zero_points(np.concatenate(zeros), bits)
    np.testing.assert_array_equal(tensors[f"{name}.zero_points"].reshape(rows, -1), packed)


def exact_logits(folder: Path) -> np.ndarray:
    """ONNX Runtime's logits with float activations, which 2 and 8 bits are too slow for outside of tests."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, folder / "model.onnx")
    return Decoder(folder).logits(WINDOW)


def assert_computes_the_codes(pressed: Model, packed: Packed) -> None:
    expected = transformers_logits(packed.plain, WINDOW)
    np.testing.assert_allclose(exact_logits(pressed.path), expected, atol=1e-4)


def assert_layers_are_exact(pressed: Model, names: set[str]) -> None:
    exact = {layer.name for layer in pressed.provenance.layers if layer.algorithm == "as stored"}
    assert exact == names
    for layer in pressed.provenance.layers:
        if layer.name in names:
            assert layer.is_exact and layer.relative_error == 0.0


LAYERS = {
    f"model.layers.{layer}.{name}": tuple(f"model.layers.{layer}.{part}" for part in parts)
    for layer in range(2)
    for name, parts in {
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj": ("self_attn.o_proj",),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj": ("mlp.down_proj",),
    }.items()
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("kind", "bits", "block"),
    [
        ("compressed-tensors", 4, 32),
        ("compressed-tensors", 8, 16),
        ("compressed-tensors", 2, 32),
        ("gptq", 4, 64),
        ("gptq", 8, 32),
        ("gptq", 2, 64),
        ("awq", 4, 32),
    ],
)
def test_codes_go_over_bit_for_bit(tiny_model: Path, tmp_path: Path, kind: str, bits: int, block: int, symmetric: bool):
    packed = pack_folder(tiny_model, tmp_path, kind, lambda _: Grid(bits, block, symmetric))
    pressed = press(packed.folder, tmp_path / "pressed", **EXACT)
    tensors = stored_tensors(pressed.path)
    for name, parts in LAYERS.items():
        assert_same_codes(tensors, f"{name}.weight", [packed.codes[part] for part in parts])
    assert_layers_are_exact(pressed, set(LAYERS))
    assert pressed.provenance.source.weights == sum(array.size for array in weights().values())
    assert_computes_the_codes(pressed, packed)


def phi3_weights() -> dict[str, np.ndarray]:
    """The tiny weights, projections fused as Phi-3 has them, with a head of its own."""
    tensors = weights()
    for layer in range(2):
        for fused, names in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
            parent = fused.partition(".")[0]
            parts = [tensors.pop(f"model.layers.{layer}.{parent}.{name}_proj.weight") for name in names]
            tensors[f"model.layers.{layer}.{fused}.weight"] = np.concatenate(parts)
    return {**tensors, "lm_head.weight": weights(1)["model.embed_tokens.weight"]}


@pytest.mark.parametrize(("kind", "symmetric"), [("compressed-tensors", False), ("gptq", False), ("awq", True)])
def test_fused_projections_are_cut_as_codes(
    make_model: Callable[..., Path], tmp_path: Path, kind: str, symmetric: bool
):
    source = make_model("phi3", tensors=phi3_weights(), **PHI3)
    packed = pack_folder(source, tmp_path, kind, lambda _: Grid(4, 32, symmetric))
    pressed = press(packed.folder, tmp_path / "pressed", accuracy_level=0, **EXACT)
    tensors = stored_tensors(pressed.path)
    for module, codes in packed.codes.items():
        assert_same_codes(tensors, f"{module}.weight", [codes])
    assert_layers_are_exact(pressed, set(packed.codes))
    assert_computes_the_codes(pressed, packed)


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("qwen3_moe", "qwen2_moe", "olmoe", "gemma3")),
    ],
)
def test_other_architectures_keep_their_codes(tiny: Callable[..., Any], tmp_path: Path, name: str):
    linears = ("_proj", ".w1", ".w2", ".w3")
    packed = pack_folder(tiny(name).folder, tmp_path, "compressed-tensors", lambda _: Grid(4, 16, False), linears)
    assert ("moe" in name or name == "mixtral") == any(".experts.3." in module for module in packed.codes)
    pressed = press(packed.folder, tmp_path / "pressed", accuracy_level=0, **EXACT)
    stored = [layer for layer in pressed.provenance.layers if layer.algorithm == "as stored"]
    assert sum(layer.bytes for layer in stored) == sum(
        codes.codes.size // 2 + codes.scales.size * 2 + _zero_bytes(codes) for codes in packed.codes.values()
    )
    assert_computes_the_codes(pressed, packed)


def _zero_bytes(codes: Codes) -> int:
    rows, blocks = codes.scales.shape
    return rows * -(-blocks * codes.grid.bits // 8)


def test_a_packed_head_keeps_its_codes(make_model: Callable[..., Path], tmp_path: Path):
    source = make_model(
        "untied",
        tensors={**weights(), "lm_head.weight": weights(1)["model.embed_tokens.weight"]},
        tie_word_embeddings=False,
    )
    packed = pack_folder(source, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, False), ending="lm_head")
    pressed = press(packed.folder, tmp_path / "pressed", accuracy_level=4, embedding_bits=8, precision="int8")
    head = next(layer for layer in pressed.provenance.layers if layer.role == "head")
    assert (head.bits, head.algorithm) == (4, "as stored")
    assert_same_codes(stored_tensors(pressed.path), "lm_head.weight", [packed.codes["lm_head"]])
    assert {layer.bits for layer in pressed.provenance.layers if layer.role != "head"} == {8}


def mixed(module: str) -> Grid | None:
    """Siblings on other grids than each other: k differs in the first layer, v is float, up has other blocks."""
    if module.startswith("model.layers.0"):
        grids = {"k_proj": Grid(8, 32, True), "v_proj": None, "up_proj": Grid(4, 16, True)}
        return grids.get(module.rpartition(".")[2], Grid(4, 32, True))
    return Grid(4, 32, not module.endswith(("v_proj", "gate_proj")))


@pytest.mark.parametrize(
    "model_type", ["llama", *(pytest.param(name, marks=pytest.mark.full) for name in ("qwen2", "qwen3"))]
)
def test_siblings_on_different_grids_stay_apart(make_model: Callable[..., Path], tmp_path: Path, model_type: str):
    tensors = weights()
    if model_type == "qwen3":  # has norms between the projections and the attention
        names = [f"model.layers.{layer}.self_attn.{name}_norm.weight" for layer in range(2) for name in "qk"]
        tensors |= {name: np.linspace(0.5, 1.5, 16, dtype=np.float32) for name in names}
    if model_type == "qwen2":  # has biases
        names = [f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in range(2) for name in "qkv"]
        tensors |= {name: np.linspace(-1, 1, 64 if ".q_" in name else 32, dtype=np.float32) for name in names}
    architecture = f"{model_type.capitalize()}ForCausalLM"
    source = make_model(tensors=tensors, model_type=model_type, architectures=[architecture], head_dim=16)
    packed = pack_folder(source, tmp_path, "compressed-tensors", mixed)
    pressed = press(
        packed.folder, tmp_path / "pressed", modules_to_not_convert=("*.layers.0.self_attn.v_proj",), **EXACT
    )
    names = {layer.name for layer in pressed.provenance.layers}
    apart = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    joined = {name for name in LAYERS if ".1." in name}
    assert names == {f"model.layers.0.{name}" for name in apart} | joined
    tensors = stored_tensors(pressed.path)
    for name in names:
        parts = LAYERS.get(name, (name,)) if name in joined else (name,)
        assert_same_codes(tensors, f"{name}.weight", [packed.codes[part] for part in parts])
    assert_layers_are_exact(pressed, names)
    assert_computes_the_codes(pressed, packed)


def test_modules_that_stay_float_are_dequantized(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, False))
    kept = ("*.self_attn.*", "*.layers.1.mlp.down_proj")
    pressed = press(packed.folder, tmp_path / "pressed", modules_to_not_convert=kept, accuracy_level=0, **EXACT)
    assert {layer.name for layer in pressed.provenance.layers} == {
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.gate_up_proj",
    }
    stored = stored_tensors(pressed.path)["model.layers.1.mlp.down_proj.weight_t"]
    np.testing.assert_array_equal(stored.T, dequantize(packed.codes["model.layers.1.mlp.down_proj"], 128))
    assert_computes_the_codes(pressed, packed)


def test_codes_stay_codes_beside_float_weights(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "awq", lambda _: Grid(4, 32, False))
    pressed = press(packed.folder, tmp_path / "pressed", precision="fp32", accuracy_level=0, logits="all")
    assert_layers_are_exact(pressed, set(LAYERS))
    assert len(pressed.provenance.layers) == len(LAYERS)
    assert_computes_the_codes(pressed, packed)


def test_scales_in_a_narrower_type_are_measured(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, True))
    gpu = Target("gpu", "CUDAExecutionProvider")
    halves = press(packed.folder, tmp_path / "halves", gpu, head_bits=16, embedding_bits=16)
    assert all(layer.is_exact for layer in halves.provenance.layers)  # these scales are float16 already
    coarse = press(packed.folder, tmp_path / "coarse", gpu, precision="bf16", accuracy_level=0)
    errors = [layer.relative_error for layer in coarse.provenance.layers]
    assert all(1e-4 < error < 2.0**-8 for error in errors)


# embeddings


def with_embedding_codes(folder: Path, source: Path, grid: Grid, dtype: str = "float32") -> Codes:
    """Put the codes of the embedding beside a checkpoint whose own table holds their values in ``dtype``."""
    import torch
    from safetensors.torch import load_file, save_file

    name = "model.embed_tokens.weight"
    tensors = load_file(folder / "model.safetensors")
    codes = rounded(np.array(load_file(source / "model.safetensors")[name].float()), grid)
    tensors[name] = torch.from_numpy(dequantize(codes, 64)).to(getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    embedding.write(folder, "model.embed_tokens", codes, 64)
    return codes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("grid", [Grid(4, 32, False), Grid(8, 64, True)])
def test_the_codes_of_a_tied_embedding_are_shared_with_the_head(
    tiny_model: Path, tmp_path: Path, grid: Grid, dtype: str
):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True))
    codes = with_embedding_codes(packed.folder, tiny_model, grid, dtype)
    with_embedding_codes(packed.plain, tiny_model, grid)
    pressed = press(packed.folder, tmp_path / "pressed", head_bits=16, embedding_bits=16, logits="all")
    tensors = stored_tensors(pressed.path)
    assert_same_codes(tensors, "model.embed_tokens.weight", [codes])
    np.testing.assert_array_equal(
        tensors["model.embed_tokens.weight.codes.lookup"].reshape(512, -1),
        pack(codes.codes, grid.bits).reshape(512, -1),
    )
    assert_layers_are_exact(pressed, {*LAYERS, "model.embed_tokens"})
    assert pressed.provenance.remarks == ()
    one_copy = 512 * 64 * grid.bits // 8
    assert (pressed.path / "model.onnx.data").stat().st_size < one_copy + 120_000
    assert_computes_the_codes(pressed, packed)


def test_the_codes_of_an_embedding_without_a_tied_head(make_model: Callable[..., Path], tmp_path: Path):
    source = make_model("phi3", tensors=phi3_weights(), **PHI3)
    codes = with_embedding_codes(source, source, Grid(4, 16, False))
    pressed = press(source, tmp_path / "pressed", precision="int8")
    table = next(layer for layer in pressed.provenance.layers if layer.role == "embedding")
    assert (table.bits, table.algorithm, table.is_exact) == (4, "as stored", True)
    tensors = stored_tensors(pressed.path)
    tensors["model.embed_tokens.weight.codes"] = tensors.pop("model.embed_tokens.weight.codes.lookup")
    assert_same_codes(tensors, "model.embed_tokens.weight", [codes])


def test_codes_of_an_embedding_that_was_trained_on_are_not_used(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True))
    with_embedding_codes(packed.folder, tiny_model, Grid(4, 32, False))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(packed.folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][250:260] *= 1.02
    save_file(tensors, packed.folder / "model.safetensors", metadata={"format": "pt"})
    pressed = press(packed.folder, tmp_path / "pressed")
    assert "embedding_codes.safetensors was not used" in pressed.provenance.remarks[0]
    head = next(layer for layer in pressed.provenance.layers if layer.role == "head")
    assert (head.bits, head.algorithm) == (8, "kquant")


# refusals


def refused(folder: Path, **options: Any) -> ColdpressError:
    with pytest.raises(ColdpressError) as caught:
        Press(**options).check(Model(folder, "hf", "x"), Target())
    return caught.value


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def test_slow_kernels_are_refused_before_any_work(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(8, 32, True))
    error = refused(packed.folder, accuracy_level=0, head_bits=16, embedding_bits=16)
    assert "model.layers.0" in error.message and "8-bit" in error.message
    assert "--modules_to_not_convert" in error.hint
    options = {"accuracy_level": 0, "head_bits": 16, "embedding_bits": 16, "modules_to_not_convert": ("*_proj",)}
    Press(**options).check(Model(packed.folder, "hf", "x"), Target())


def test_act_order_is_refused_or_dequantized(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(packed.folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][::-1].copy()
    save_file(tensors, packed.folder / "model.safetensors", metadata={"format": "pt"})
    error = refused(packed.folder)
    assert "act-order" in error.message and "desc_act=false" in error.hint
    pressed = press(packed.folder, tmp_path / "pressed", modules_to_not_convert=(name,))
    assert name not in {layer.name for layer in pressed.provenance.layers}


def test_unknown_methods_are_refused(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True))
    change_config(packed.folder, quant_method="bitsandbytes")
    assert "bitsandbytes" in refused(packed.folder).message


def test_options_for_grids_are_refused_where_floats_stay_floats(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True))
    assert "block_size" in refused(packed.folder, precision="fp32", block_size=64).message
    assert "accuracy_level" in refused(packed.plain, precision="fp32", accuracy_level=0).message


def test_weights_that_are_mixed_on_their_way_are_refused_as_codes(tmp_path: Path, tiny: Callable[..., Any]):
    packed = pack_folder(tiny("gpt_neox").folder, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, True), "dense")
    with pytest.raises(ColdpressError, match="is quantized") as caught:
        press(packed.folder, tmp_path / "pressed")
    assert "unquantized" in caught.value.hint


def test_every_format_is_tried():
    assert set(FORMATS) == {"compressed-tensors", gptq.METHOD, awq.METHOD}
