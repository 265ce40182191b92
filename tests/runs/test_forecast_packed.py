"""What is predicted for folders that are quantized already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldpress.api import optimize_workflow
from coldpress.graphs.kernels import Encoding
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.model import Model
from coldpress.models.packed import embedding
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.runs.forecast import Shape, Stored, output_bytes, plan, shape_from_config, shape_of
from coldpress.target import Target
from tests.conftest import weights, write_model
from tests.packed_folders import pack_folder, rounded

FIXED = output_bytes(Shape(0, 0, True, 0), Press(), Target())
NORMS = 5 * 64 * 4


def pressed_bytes(folder: Path, output: Path, press: Press) -> int:
    output.mkdir()
    press.run(Model(folder, "hf", "x"), Context(output))
    return (output / "model.onnx.data").stat().st_size - NORMS


@pytest.mark.parametrize(
    ("kind", "grid"),
    [("gptq", Grid(4, 32, False)), ("awq", Grid(4, 64, True)), ("compressed-tensors", Grid(8, 16, True))],
)
def test_the_configuration_alone_gives_the_same_shape_as_the_weights(
    tiny_model: Path, tmp_path: Path, kind: str, grid: Grid
):
    packed = pack_folder(tiny_model, tmp_path, kind, lambda _: grid)
    shape = shape_of(Model(packed.folder, "hf", ""))
    assert shape.stored == (Stored("linear", shape.linear, Encoding(grid.bits, grid.block_size, grid.symmetric)),)
    assert shape.total == shape_of(Model(tiny_model, "hf", "")).total
    if kind != "awq":  # that it needs no zero points shows in the weights only
        assert shape_from_config(json.loads((packed.folder / "config.json").read_text())) == shape


@pytest.mark.parametrize("options", [{}, {"precision": "int8"}, {"precision": "fp32"}, {"head_bits": 16}])
def test_the_predicted_size_is_that_of_the_result(tiny_model: Path, tmp_path: Path, options: dict[str, object]):
    grids = {"down_proj": Grid(8, 32, True), "o_proj": Grid(4, 16, False)}
    packed = pack_folder(
        tiny_model, tmp_path, "compressed-tensors", lambda name: grids.get(name.rpartition(".")[2], Grid(4, 64, True))
    )
    press = Press(**options)
    predicted = output_bytes(shape_of(Model(packed.folder, "hf", "")), press, Target()) - FIXED
    assert predicted == pytest.approx(pressed_bytes(packed.folder, tmp_path / "pressed", press), rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_codes_of_an_embedding_count_with_their_bits(tmp_path: Path, tied: bool):
    tensors = weights()
    codes: Codes = rounded(tensors["model.embed_tokens.weight"], Grid(4, 32, True))
    head = {} if tied else {"lm_head.weight": weights(1)["model.embed_tokens.weight"]}
    tensors["model.embed_tokens.weight"] = dequantize(codes, 64).copy()
    folder = write_model(tmp_path / "model", {**tensors, **head}, tie_word_embeddings=tied)
    embedding.write(folder, "model.embed_tokens", codes, 64)
    assert len(Checkpoint(folder).files) == 1
    shape = shape_of(Model(folder, "hf", ""))
    assert shape.stored == (Stored("head" if tied else "embedding", 512 * 64, Encoding(4, 32, True)),)
    predicted = output_bytes(shape, Press(precision="int8"), Target()) - FIXED
    assert predicted == pytest.approx(pressed_bytes(folder, tmp_path / "pressed", Press(precision="int8")), rel=0.02)


def test_a_plan_of_codes_is_smaller_and_quicker(tiny_model: Path, tmp_path: Path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True))
    codes, floats = (plan(optimize_workflow(folder, precision="int8")) for folder in (packed.folder, packed.plain))
    assert codes["weights"] == floats["weights"]
    assert codes["output_bytes"] < floats["output_bytes"] and codes["press_s"] < floats["press_s"]
