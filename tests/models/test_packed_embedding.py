"""The codes of an embedding beside the checkpoint: what is written is what is read, and no part of the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.packed import embedding
from coldpress.models.packed.folder import read_packed
from coldpress.models.packed.spans import FloatTensors, PackedSpan, tensors_to_press
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant

NAME = "model.embed_tokens"


def assert_same(found: Codes, codes: Codes) -> None:
    assert found.grid == codes.grid
    np.testing.assert_array_equal(found.codes, codes.codes)
    assert found.scales.tobytes() == codes.scales.tobytes()
    if codes.zero_points is None:
        assert found.zero_points is None
    else:
        np.testing.assert_array_equal(found.zero_points, codes.zero_points)


def codes_of(grid: Grid, rows: int = 40, columns: int = 64, seed: int = 0) -> Codes:
    return kquant(np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32), grid)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(2, 32), (4, 16), (4, 64), (8, 32)])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, bits: int, block: int, symmetric: bool):
    codes = codes_of(Grid(bits, block, symmetric))
    embedding.write(tmp_path, NAME, codes, 64)
    (linear,) = embedding.read(tmp_path).values()
    assert (linear.module, linear.rows, linear.columns) == (NAME, 40, 64)
    assert_same(linear.rows_as_codes(0, 40), codes)
    np.testing.assert_array_equal(linear.dequantized(3, 20), dequantize(codes, 64)[3:20])


def test_each_module_keeps_its_own_grid(tmp_path: Path):
    grids = {NAME: Grid(4, 32, False), "decoder.embed_tokens": Grid(8, 16, True), "model.other": Grid(4, 16, True)}
    codes = {module: codes_of(grid, seed=seed) for seed, (module, grid) in enumerate(grids.items())}
    for module, of_module in codes.items():
        embedding.write(tmp_path, module, of_module, 64)
    found = embedding.read(tmp_path)
    assert set(found) == set(grids)
    for module, linear in found.items():
        assert_same(linear.rows_as_codes(0, 40), codes[module])


def test_a_folder_without_codes_has_none(tiny_model: Path):
    assert embedding.read(tiny_model) == {}


def test_blocks_that_do_not_divide_a_row_are_refused(tmp_path: Path):
    with pytest.raises(ColdpressError, match="72 inputs"):
        embedding.write(tmp_path, NAME, codes_of(Grid(4, 32, True), columns=72), 72)


def test_a_file_of_somebody_else_is_named(tmp_path: Path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "embedding_codes.safetensors", metadata={"format": "pt"})
    with pytest.raises(ColdpressError, match=r"embedding_codes\.safetensors") as caught:
        embedding.read(tmp_path)
    assert "delete" in caught.value.hint


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with the codes of its embedding, and a table that holds their values."""
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = {name: np.array(span.rows(0, span.shape[0])) for name, span in Checkpoint(tiny_model).tensors.items()}
    codes = kquant(tensors[f"{NAME}.weight"], Grid(4, 32, False))
    tensors[f"{NAME}.weight"] = np.ascontiguousarray(dequantize(codes, 64))
    save_file(tensors, copy / "model.safetensors")
    embedding.write(copy, NAME, codes, 64)
    return copy


def test_codes_are_no_part_of_the_checkpoint(folder: Path, tiny_model: Path):
    assert set(Checkpoint(folder).tensors) == set(Checkpoint(tiny_model).tensors)
    assert set(FloatTensors(folder).names()) == set(Checkpoint(tiny_model).tensors)
    assert read_packed(folder) == {}


def test_a_span_of_codes_can_be_cut(folder: Path):
    tensors, warnings = tensors_to_press(folder)
    span, values = tensors[f"{NAME}.weight"], Checkpoint(folder).tensors[f"{NAME}.weight"].view()
    assert isinstance(span, PackedSpan) and not warnings
    part = span.cut(100, 300).cut(7, 50)
    assert part.shape == (43, 64)
    np.testing.assert_array_equal(part.rows(0, 43), values[107:150])
    np.testing.assert_array_equal(part.view(), values[107:150])
    np.testing.assert_array_equal(dequantize(part.codes(3, 10), 64), values[110:117])


@pytest.mark.parametrize("rows", [slice(0, 16), slice(200, 512)])
def test_a_table_that_has_changed_is_told_from_its_codes(folder: Path, rows: slice):
    tensors = {name: np.array(span.view()) for name, span in Checkpoint(folder).tensors.items()}
    tensors[f"{NAME}.weight"][rows] += 1e-4
    save_file(tensors, folder / "model.safetensors")
    found, warnings = tensors_to_press(folder)
    assert not isinstance(found[f"{NAME}.weight"], PackedSpan)
    assert len(warnings) == 1 and NAME in warnings[0]


def test_a_table_of_another_shape_is_told_from_its_codes(folder: Path):
    embedding.write(folder, NAME, codes_of(Grid(4, 32, True), rows=500), 64)
    assert len(tensors_to_press(folder)[1]) == 1
