"""Quantized Hugging Face checkpoints: their layouts bit by bit, reading them, and what transformers makes of them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.packed import awq, compressed_tensors, gptq, loading
from coldpress.models.packed.folder import quantization_config, read_packed
from coldpress.models.packed.patterns import patterns_for
from coldpress.models.packed.spans import FloatTensors
from coldpress.models.packed.words import pack_words, unpack_words
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.rtn import rtn

Tensors = dict[str, Any]
MODULE = "model.layers.0.mlp.up_proj"


def random_codes(rows: int, columns: int, grid: Any, seed: int = 0) -> Codes:
    """Any code, scales of both signs on symmetric grids, all exactly representable in float16 and bfloat16."""
    random = np.random.default_rng(seed)
    blocks = columns // grid.block_size
    codes = random.integers(0, 1 << grid.bits, (rows, blocks, grid.block_size)).astype(np.uint8)
    scales = (random.integers(1, 128, (rows, blocks)) / 1024).astype(np.float32)
    if grid.symmetric:
        return Codes(codes, scales * random.choice([-1, 1], scales.shape).astype(np.float32), None, grid)
    zeros = random.integers(1, 1 << grid.bits, (rows, blocks)).astype(np.uint8)
    return Codes(codes, scales, zeros, grid)


def write_folder(folder: Path, tensors: Tensors, config: Mapping[str, Any] | None) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    entry = {} if config is None else {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **entry}))
    return folder


def only_linear(folder: Path) -> Any:
    return read_packed(folder)[MODULE]


def assert_same(found: Codes, codes: Codes) -> None:
    np.testing.assert_array_equal(found.codes, codes.codes)
    np.testing.assert_array_equal(found.scales, codes.scales)
    assert found.grid == codes.grid
    if codes.zero_points is None:
        assert found.zero_points is None
    else:
        np.testing.assert_array_equal(found.zero_points, codes.zero_points)


def slow_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``[rows, count]`` -> words, one bit after the other: bit b of code i is bit ``i * bits + b`` of the row."""
    words = np.zeros((len(codes), -(-codes.shape[1] * bits // 32)), np.uint32)
    for row, values in enumerate(codes):
        for index, value in enumerate(values):
            for bit in range(bits):
                place = index * bits + bit
                words[row, place // 32] |= np.uint32((int(value) >> bit & 1) << place % 32)
    return words.view(np.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 31, 32, 40, 96])
def test_words_hold_one_stream_of_bits(bits: int, count: int):
    codes = np.random.default_rng(count).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    words = pack_words(codes, bits)
    np.testing.assert_array_equal(words, slow_words(codes, bits))
    np.testing.assert_array_equal(unpack_words(words, bits, count), codes)


# compressed-tensors


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block_size", "rows"), [(2, 16, 36), (4, 32, 36), (4, 128, 7), (8, 64, 33)])
def test_compressed_tensors_bit_by_bit_and_back(tmp_path: Path, bits: int, block_size: int, rows: int, symmetric: bool):
    columns = 3 * block_size
    codes = random_codes(rows, columns, Grid(bits, block_size, symmetric))
    tensors = compressed_tensors.tensors_of(MODULE, codes, columns)
    np.testing.assert_array_equal(tensors[f"{MODULE}.weight_packed"], slow_words(codes.codes.reshape(rows, -1), bits))
    np.testing.assert_array_equal(tensors[f"{MODULE}.weight_shape"], [rows, columns])
    if codes.zero_points is not None:
        expected = slow_words(codes.zero_points.T, bits).T
        np.testing.assert_array_equal(tensors[f"{MODULE}.weight_zero_point"], expected)

    linear = only_linear(write_folder(tmp_path, tensors, compressed_tensors.config_of({MODULE: codes.grid})))
    assert (linear.rows, linear.columns, linear.grid) == (rows, columns, codes.grid)
    assert_same(linear.rows_as_codes(0, rows), codes)
    np.testing.assert_array_equal(linear.dequantized(0, rows), dequantize(codes, columns))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scales_are_stored_in_the_asked_type(tmp_path: Path, dtype: str):
    codes = random_codes(4, 64, Grid(4, 32, True))
    tensors = compressed_tensors.tensors_of(MODULE, codes, 64, dtype)
    folder = write_folder(tmp_path, tensors, compressed_tensors.config_of({MODULE: codes.grid}))
    assert Checkpoint(folder).tensors[f"{MODULE}.weight_scale"].dtype == {"b": "BF16", "f": f"F{dtype[-2:]}"}[dtype[0]]
    assert_same(only_linear(folder).rows_as_codes(0, 4), codes)


def loose_words(codes: np.ndarray, bits: int) -> np.ndarray:
    per_word = 32 // bits
    words = np.zeros((len(codes), -(-codes.shape[1] // per_word)), np.uint32)
    for row, values in enumerate(codes):
        for index, value in enumerate(values):
            words[row, index // per_word] |= np.uint32(int(value) << index % per_word * bits)
    return words.view(np.int32)


@pytest.mark.parametrize("packing", [slow_words, loose_words])
@pytest.mark.parametrize("symmetric", [True, False])
def test_three_bits_of_old_and_new_versions_stay_in_hugging_face(
    tmp_path: Path, packing: Callable[..., np.ndarray], symmetric: bool
):
    grid: Any = SimpleNamespace(bits=3, block_size=32, symmetric=symmetric, middle=4, top=7)
    codes = random_codes(33, 96, grid)
    tensors = compressed_tensors.tensors_of(MODULE, codes, 96)
    if packing is slow_words:
        np.testing.assert_array_equal(tensors[f"{MODULE}.weight_packed"], slow_words(codes.codes.reshape(33, 96), 3))
    tensors[f"{MODULE}.weight_packed"] = packing(codes.codes.reshape(33, 96), 3)
    if codes.zero_points is not None:
        tensors[f"{MODULE}.weight_zero_point"] = packing(codes.zero_points.T, 3).T
    weights = {"num_bits": 3, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    linear = only_linear(write_folder(tmp_path, tensors, config))
    np.testing.assert_array_equal(linear.dequantized(3, 33), dequantize(codes, 96)[3:])
    with pytest.raises(ColdpressError, match="3 bits") as caught:
        linear.rows_as_codes(0, 33)
    assert "Hugging Face folder" in str(caught.value.hint)


def test_one_scale_a_row_becomes_blocks_with_that_scale(tmp_path: Path):
    codes = random_codes(8, 96, Grid(4, 32, False))
    codes.scales[:], codes.zero_points[:] = codes.scales[:, :1], codes.zero_points[:, :1]
    tensors = compressed_tensors.tensors_of(MODULE, codes, 96)
    tensors[f"{MODULE}.weight_scale"] = codes.scales[:, :1]
    tensors[f"{MODULE}.weight_zero_point"] = tensors[f"{MODULE}.weight_zero_point"][:, :1]
    config = compressed_tensors.config_of({MODULE: codes.grid})
    config["config_groups"]["group_0"]["weights"].update(strategy="channel", group_size=None)
    assert_same(only_linear(write_folder(tmp_path, tensors, config)).rows_as_codes(0, 8), codes)


def test_each_module_is_read_with_the_scheme_that_names_it(tmp_path: Path):
    grids = {f"model.layers.{i}.{name}": Grid(4, 32, True) for i in range(12) for name in ("mlp.up", "mlp.down")}
    grids |= {"model.layers.1.mlp.down": Grid(8, 16, False), "lm_head": Grid(8, 16, False)}
    grids |= {"model.layers.11.mlp.down": Grid(2, 64, True)}
    codes = {module: random_codes(4, 64, grid, seed) for seed, (module, grid) in enumerate(grids.items())}
    tensors: Tensors = {}
    for module in grids:
        tensors |= compressed_tensors.tensors_of(module, codes[module], 64)
    found = read_packed(write_folder(tmp_path, tensors, compressed_tensors.config_of(grids)))
    assert set(found) == set(grids)
    for module, linear in found.items():
        assert_same(linear.rows_as_codes(0, 4), codes[module])


def test_patterns_draw_layers_and_experts_together():
    experts = [f"model.layers.{i}.mlp.experts.{e}.up_proj" for i in range(3) for e in range(8)]
    assert patterns_for(experts, ["model.layers.0.mlp.gate"]) == [r"model\.layers\.\d+\.mlp\.experts\.\d+\.up_proj$"]
    some = ["model.layers.0.mlp.up", "model.layers.10.mlp.up", "lm_head"]
    assert patterns_for(some, ["model.layers.1.mlp.up"]) == ["lm_head$", r"model\.layers\.(0|10)\.mlp\.up$"]


# GPTQ


def slow_gptq(codes: Codes, zero_points_less: int) -> Tensors:
    """The layout as published, written down one bit at a time."""
    rows, blocks, block_size = codes.codes.shape
    bits, columns = codes.grid.bits, blocks * block_size
    zeros = np.full((rows, blocks), codes.grid.middle) if codes.zero_points is None else codes.zero_points.astype(int)
    return {
        f"{MODULE}.qweight": slow_words(codes.codes.reshape(rows, columns), bits).T,
        f"{MODULE}.qzeros": slow_words((zeros.T - zero_points_less) & codes.grid.top, bits),
        f"{MODULE}.scales": codes.scales.T.astype(np.float16),
        f"{MODULE}.g_idx": np.repeat(np.arange(blocks), block_size).astype(np.int32),
    }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("version", "less"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_bit_by_bit_and_back(tmp_path: Path, bits: int, version: str, less: int, symmetric: bool):
    codes = random_codes(64, 96, Grid(bits, 32, symmetric))
    if codes.zero_points is not None and less == 0:
        codes.zero_points[::3] = 0
    tensors = gptq.tensors_of(MODULE, codes, 96, version)
    expected = slow_gptq(codes, less)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    config = gptq.config_of({MODULE: codes.grid}, ["lm_head"], version)
    linear = only_linear(write_folder(tmp_path, tensors, config))
    assert_same(linear.rows_as_codes(0, 64), codes)
    part = linear.rows_as_codes(5, 41)
    np.testing.assert_array_equal(dequantize(part, 96), dequantize(codes, 96)[5:41])
    np.testing.assert_array_equal(linear.dequantized(5, 41), dequantize(codes, 96)[5:41])


def test_gptq_three_bits(tmp_path: Path):
    grid: Any = SimpleNamespace(bits=3, block_size=32, symmetric=False, middle=4, top=7)
    codes = random_codes(64, 96, grid)
    tensors = gptq.tensors_of(MODULE, codes, 96)
    for name, tensor in slow_gptq(codes, 1).items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    folder = write_folder(tmp_path, tensors, {"quant_method": "gptq", "bits": 3, "group_size": 32})
    np.testing.assert_array_equal(only_linear(folder).dequantized(1, 64), dequantize(codes, 96)[1:])


def test_gptq_zero_point_of_zero_is_not_written_in_the_first_format():
    codes = random_codes(32, 64, Grid(4, 32, False))
    codes.zero_points[3, 1] = 0
    with pytest.raises(ColdpressError, match="zero point of 0") as caught:
        gptq.tensors_of(MODULE, codes, 64)
    assert "gptq_v2" in str(caught.value.hint)


@pytest.mark.parametrize("writer", ["auto_gptq:0.7.1", "gptqmodel:2.2.0"])
def test_gptq_zero_point_of_zero_is_read_as_its_writer_meant_it(tmp_path: Path, writer: str):
    codes = random_codes(32, 64, Grid(4, 32, False))
    codes.zero_points[::2] = 0
    tensors = slow_gptq(codes, 1)
    if writer.startswith("gptqmodel"):  # it takes the ones of all fields away at once, and they borrow
        plain = slow_gptq(codes, 0)[f"{MODULE}.qzeros"].view(np.uint32)
        tensors[f"{MODULE}.qzeros"] = (plain - np.uint32(0x11111111)).view(np.int32)
    config = {**gptq.config_of({MODULE: codes.grid}), "meta": {"quantizer": [writer]}}
    assert_same(only_linear(write_folder(tmp_path, tensors, config)).rows_as_codes(0, 32), codes)


def test_gptq_act_order_has_values_but_no_blocks(tmp_path: Path):
    codes = random_codes(32, 128, Grid(4, 32, False))
    tensors, order = slow_gptq(codes, 1), np.random.default_rng(1).permutation(128)
    tensors[f"{MODULE}.g_idx"] = (order // 32).astype(np.int32)
    config = {**gptq.config_of({MODULE: codes.grid}), "desc_act": True}
    linear = only_linear(write_folder(tmp_path, tensors, config))
    groups = order // 32
    assert codes.zero_points is not None
    steps = codes.codes.reshape(32, 128).astype(np.float32) - codes.zero_points[:, groups]
    np.testing.assert_array_equal(linear.dequantized(0, 32), steps * codes.scales[:, groups])
    with pytest.raises(ColdpressError, match="act-order") as caught:
        linear.rows_as_codes(0, 32)
    assert "desc_act=false" in str(caught.value.hint)


def test_gptq_act_order_with_columns_in_order_is_read(tmp_path: Path):
    codes = random_codes(32, 64, Grid(4, 32, True))
    config = {**gptq.config_of({MODULE: codes.grid}), "desc_act": True}
    assert_same(only_linear(write_folder(tmp_path, slow_gptq(codes, 1), config)).rows_as_codes(0, 32), codes)


@pytest.mark.parametrize("group_size", [512, -1])
def test_gptq_groups_larger_than_a_block_repeat_their_scale(tmp_path: Path, group_size: int):
    codes = random_codes(32, 1024, Grid(4, 256, False))
    each = 2 if group_size == 512 else 4
    assert codes.zero_points is not None
    codes.scales = np.repeat(codes.scales[:, ::each], each, axis=1)
    codes.zero_points = np.repeat(codes.zero_points[:, ::each], each, axis=1)
    tensors = slow_gptq(codes, 1)
    for part in ("qzeros", "scales"):
        tensors[f"{MODULE}.{part}"] = tensors[f"{MODULE}.{part}"][::each]
    tensors[f"{MODULE}.g_idx"] //= each
    config = {**gptq.config_of({MODULE: codes.grid}), "group_size": group_size}
    assert_same(only_linear(write_folder(tmp_path, tensors, config)).rows_as_codes(0, 32), codes)


def test_gptq_modules_may_differ(tmp_path: Path):
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(3)]
    grids = dict(zip(names, [Grid(4, 32, True), Grid(8, 16, False), Grid(4, 32, True)], strict=True))
    codes = {name: random_codes(32, 64, grid, seed) for seed, (name, grid) in enumerate(grids.items())}
    tensors: Tensors = {}
    for name in names:
        tensors |= gptq.tensors_of(name, codes[name], 64)
    found = read_packed(write_folder(tmp_path, tensors, gptq.config_of(grids, ["lm_head", "model.vision.proj"])))
    for name in names:
        assert_same(found[name].rows_as_codes(0, 32), codes[name])


def test_old_autogptq_folders_have_their_settings_in_another_file(tmp_path: Path):
    codes = random_codes(32, 64, Grid(4, 32, False))
    folder = write_folder(tmp_path, slow_gptq(codes, 1), None)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    assert_same(only_linear(folder).rows_as_codes(0, 32), codes)


def test_a_chunk_costs_the_memory_of_a_chunk(tmp_path: Path):
    codes = random_codes(4096, 2048, Grid(4, 128, True))
    folder = write_folder(tmp_path, gptq.tensors_of(MODULE, codes, 2048), gptq.config_of({MODULE: codes.grid}))
    linear = only_linear(folder)
    tracemalloc.start()
    for start, stop in ((0, 64), (64, 128), (4032, 4096)):
        np.testing.assert_array_equal(linear.rows_as_codes(start, stop).codes, codes.codes[start:stop])
    assert tracemalloc.get_traced_memory()[1] < 3_000_000  # the codes of all rows are 8 MB
    tracemalloc.stop()


# AWQ


def slow_awq(lines: np.ndarray) -> np.ndarray:
    words = np.zeros((len(lines), lines.shape[1] // 8), np.uint32)
    for line, values in enumerate(lines):
        for word in range(words.shape[1]):
            for place, row in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                words[line, word] |= np.uint32(int(values[word * 8 + row]) << 4 * place)
    return words.view(np.int32)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_bit_by_bit_and_back(tmp_path: Path, symmetric: bool):
    codes = random_codes(40, 64, Grid(4, 32, symmetric))
    tensors = awq.tensors_of(MODULE, codes, 64)
    zeros = np.full((40, 2), 8) if codes.zero_points is None else codes.zero_points
    np.testing.assert_array_equal(tensors[f"{MODULE}.qweight"], slow_awq(codes.codes.reshape(40, 64).T))
    np.testing.assert_array_equal(tensors[f"{MODULE}.qzeros"], slow_awq(zeros.T))
    linear = only_linear(write_folder(tmp_path, tensors, awq.config_of({MODULE: codes.grid}, ["lm_head"])))
    assert_same(linear.rows_as_codes(0, 40), codes)
    np.testing.assert_array_equal(linear.dequantized(3, 21), dequantize(codes, 64)[3:21])


def test_awq_has_four_bits_and_one_group_size():
    with pytest.raises(ColdpressError, match="8 bits"):
        awq.tensors_of(MODULE, random_codes(8, 64, Grid(8, 32, True)), 64)
    with pytest.raises(ColdpressError, match="one group size"):
        awq.config_of({"a": Grid(4, 32, True), "b": Grid(4, 64, True)})


# folders


def test_float_tensors_look_like_the_plain_checkpoint(tmp_path: Path):
    codes, norm = random_codes(32, 64, Grid(4, 32, False)), np.arange(64, dtype=np.float32)
    bias = np.ones(32, np.float16)
    tensors = {**gptq.tensors_of(MODULE, codes, 64), "model.norm.weight": norm, f"{MODULE}.bias": bias}
    floats = FloatTensors(write_folder(tmp_path, tensors, gptq.config_of({MODULE: codes.grid})))
    assert sorted(floats.names()) == [f"{MODULE}.bias", f"{MODULE}.weight", "model.norm.weight"]
    assert floats.shape(f"{MODULE}.weight") == (32, 64)
    np.testing.assert_array_equal(floats.rows(f"{MODULE}.weight", 7, 20), dequantize(codes, 64)[7:20])
    np.testing.assert_array_equal(floats.rows("model.norm.weight", 0, 64), norm)
    assert floats.rows(f"{MODULE}.bias", 0, 32).dtype == np.float32


def test_a_plain_checkpoint_has_no_packed_layers(tiny_model: Path):
    assert quantization_config(tiny_model) is None
    assert read_packed(tiny_model) == {}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}, "float-quantized"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, config: dict[str, Any], words: str):
    with pytest.raises(ColdpressError, match=words) as caught:
        read_packed(write_folder(tmp_path, {"a.weight": np.zeros((2, 2), np.float32)}, config))
    assert caught.value.hint


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path, part: str):
    codes = random_codes(32, 64, Grid(4, 32, True))
    tensors = gptq.tensors_of(MODULE, codes, 64)
    tensors[f"{MODULE}.{part}"] = tensors[f"{MODULE}.{part}"][:1]
    with pytest.raises(ColdpressError, match=part):
        read_packed(write_folder(tmp_path, tensors, gptq.config_of({MODULE: codes.grid})))
    del tensors[f"{MODULE}.{part}"]
    with pytest.raises(ColdpressError, match=part):
        read_packed(write_folder(tmp_path, tensors, gptq.config_of({MODULE: codes.grid})))


@pytest.mark.parametrize("write", [compressed_tensors.tensors_of, gptq.tensors_of, awq.tensors_of])
def test_padded_rows_and_scales_that_overflow_are_refused(write: Callable[..., Tensors]):
    padded = rtn(np.ones((32, 96), np.float32), Grid(4, 64, True))
    with pytest.raises(ColdpressError, match="96 inputs") as caught:
        write(MODULE, padded, 96)
    assert "group size of 32" in str(caught.value.hint)
    large = rtn(np.full((32, 64), 1e7, np.float32), Grid(4, 64, True))
    dtype = {"scale_dtype": "float16"} if write is not awq.tensors_of else {}
    with pytest.raises(ColdpressError, match="float16 cannot hold"):
        write(MODULE, large, 64, **dtype)


# what transformers makes of them


def quantized_and_float(folder: Path, source: Path, grid_of: Callable[[str], Grid]) -> tuple[Path, Path]:
    """The tiny model with its projections quantized, and with their values as floats."""
    packed: Tensors = {}
    floats: Tensors = {}
    grids = {}
    for name, span in Checkpoint(source).tensors.items():
        weight = np.array(span.rows(0, span.shape[0]))
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight"):
            grids[module] = grid_of(name)
            codes = rtn(weight, grids[module])
            packed |= compressed_tensors.tensors_of(module, codes, weight.shape[1])
            floats[name] = dequantize(codes, weight.shape[1])
        else:
            packed[name] = floats[name] = weight
    config = json.loads((source / "config.json").read_text()) | {"dtype": "float32"}
    entries = {"quantized": {"quantization_config": compressed_tensors.config_of(grids, ["lm_head"])}, "float": {}}
    for (kind, entry), tensors in zip(entries.items(), (packed, floats), strict=True):
        write_folder(folder / kind, tensors, None)
        (folder / kind / "config.json").write_text(json.dumps(config | entry))
    return folder / "quantized", folder / "float"


def assert_transformers_agrees(quantized: Path, plain: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(16)[None]
    with torch.inference_mode():
        model, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in (quantized, plain))
        assert torch.equal(model(ids).logits, reference(ids).logits)
        assert torch.equal(
            model.generate(ids, max_new_tokens=4, do_sample=False),
            reference.generate(ids, max_new_tokens=4, do_sample=False),
        )
    for name, linear in read_packed(quantized).items():
        # the packed weight is unpacked by now; it is exactly what the codes say
        assert np.array_equal(model.get_submodule(name).weight.detach(), linear.dequantized(0, linear.rows))


def _mixed(symmetric: bool) -> Callable[[str], Grid]:
    return lambda name: Grid(8 if "down_proj" in name or "layers.0." in name else 4, 32, symmetric)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "grid_of",
    [
        pytest.param(lambda _: Grid(4, 32, True), id="4 bits symmetric"),
        pytest.param(lambda _: Grid(8, 32, True), id="8 bits symmetric"),
        pytest.param(_mixed(symmetric=True), id="mixed symmetric"),
        pytest.param(lambda _: Grid(4, 32, False), id="4 bits asymmetric"),
        pytest.param(lambda _: Grid(8, 64, False), id="8 bits asymmetric"),
    ],
)
def test_plain_transformers_loads_it(tmp_path: Path, tiny_model: Path, grid_of: Callable[[str], Grid]):
    assert_transformers_agrees(*quantized_and_float(tmp_path, tiny_model, grid_of))


@pytest.mark.filterwarnings("ignore")
def test_mixed_asymmetric_loads_after_register(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = compressed_tensors.METHOD
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, method, AUTO_QUANTIZER_MAPPING[method])
    loading.register()
    registered = AUTO_QUANTIZER_MAPPING[method]
    loading.register()
    assert AUTO_QUANTIZER_MAPPING[method] is registered
    assert_transformers_agrees(*quantized_and_float(tmp_path, tiny_model, _mixed(symmetric=False)))
