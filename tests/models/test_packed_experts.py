"""Packed experts: what transformers makes of them, alone and with our help.

Never other numbers than the codes stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coldpress.models.packed import loading
from coldpress.models.packed.compressed_tensors import METHOD, config_of
from coldpress.models.packed.folder import read_packed
from coldpress.models.packed.patterns import patterns_for
from coldpress.quant.grid import Grid
from tests.architectures import checkpoint
from tests.packed_folders import Packed, ignoring_the_rest, pack_folder, transformers_logits

MIXTURES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe")
LINEARS = ("_proj", ".w1", ".w2", ".w3")
WINDOW = np.arange(3, 27)
FOUR, FOUR_WITH_ZEROS, EIGHT = Grid(4, 16, True), Grid(4, 16, False), Grid(8, 16, True)

GridOf = Callable[[str], Grid]
#: what transformers 5.23 does not load without help
UNUSUAL: dict[str, GridOf] = {
    "zero points": lambda _: FOUR_WITH_ZEROS,
    "more bits for down": lambda name: EIGHT if "down_proj" in name or ".w2" in name else FOUR,
    "more bits for gate": lambda name: EIGHT if "gate_proj" in name or ".w1" in name else FOUR_WITH_ZEROS,
    "more bits for a layer": lambda name: EIGHT if ".layers.1." in name else FOUR_WITH_ZEROS,
}


def packed(name: str, folder: Path, grid_of: GridOf) -> Packed:
    source = checkpoint(name, folder / "source").folder
    made = pack_folder(source, folder, "compressed-tensors", grid_of, LINEARS)
    ignoring_the_rest(made)
    return made


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process is that never called `register`, whatever ran in this one before."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, CompressedTensorsHfQuantizer)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, AUTO_QUANTIZER_MAPPING[METHOD])
    loading.register()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MIXTURES)
def test_plain_transformers_loads_symmetric_experts(name: str, tmp_path: Path):
    made = packed(name, tmp_path, lambda _: FOUR)
    np.testing.assert_array_equal(transformers_logits(made.folder, WINDOW), transformers_logits(made.plain, WINDOW))


@pytest.mark.filterwarnings("ignore")
def test_plain_transformers_loads_experts_of_one_kind_among_others(tmp_path: Path):
    made = packed("qwen3_moe", tmp_path, lambda name: FOUR if ".experts." in name else EIGHT)
    np.testing.assert_array_equal(transformers_logits(made.folder, WINDOW), transformers_logits(made.plain, WINDOW))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grids", UNUSUAL)
def test_plain_transformers_never_misreads_experts(grids: str, tmp_path: Path, unregistered: None):
    made = packed("qwen3_moe", tmp_path, UNUSUAL[grids])
    with pytest.raises(RuntimeError, match="conversion"):
        transformers_logits(made.folder, WINDOW)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grids", UNUSUAL)
@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral"])
def test_all_experts_load_after_register(name: str, grids: str, tmp_path: Path, registered: None):
    made = packed(name, tmp_path, UNUSUAL[grids])
    np.testing.assert_array_equal(transformers_logits(made.folder, WINDOW), transformers_logits(made.plain, WINDOW))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_any_bits_load_after_register(bits: int, tmp_path: Path, registered: None):
    made = packed("qwen3_moe", tmp_path, lambda _: Grid(bits, 16, False))
    np.testing.assert_array_equal(transformers_logits(made.folder, WINDOW), transformers_logits(made.plain, WINDOW))


@pytest.mark.parametrize("grids", UNUSUAL)
def test_codes_are_found_by_the_names_of_experts(grids: str, tmp_path: Path):
    made = packed("mixtral", tmp_path, UNUSUAL[grids])
    found = read_packed(made.folder)
    assert set(found) == set(made.codes)
    for module, linear in found.items():
        assert np.array_equal(linear.rows_as_codes(0, linear.rows).codes, made.codes[module].codes)


def test_patterns_do_not_grow_with_the_experts():
    names = [f"model.layers.{i}.mlp.experts.{e}.up_proj" for i in range(4) for e in range(32)]
    own = [name for name in names if name.startswith(("model.layers.0.", "model.layers.3."))]
    others = [name for name in names if name not in own]
    assert patterns_for(own, others) == [r"model\.layers\.(0|3)\.mlp\.experts\.\d+\.up_proj$"]
    apart = [name for name in own if ".experts.7." in name]
    rest = [name for name in names if name not in apart]
    assert patterns_for(apart, rest) == [r"model\.layers\.(0|3)\.mlp\.experts\.7\.up_proj$"]


def test_of_several_kinds_of_experts_that_with_most_bits_is_named_first():
    grids = {f"model.layers.0.mlp.experts.{e}.{part}": FOUR for e in range(8) for part in ("gate_proj", "up_proj")}
    grids |= {f"model.layers.0.mlp.experts.{e}.down_proj": EIGHT for e in range(8)}
    first = config_of(grids)["config_groups"]["group_0"]
    assert first["weights"]["num_bits"] == 8
