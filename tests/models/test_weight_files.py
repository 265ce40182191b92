"""The weights of a folder are those that transformers loads; files that disagree are refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.packed.spans import plain_tensors
from coldpress.models.sources import find_model
from coldpress.networks.shards import Shards
from tests.conftest import weights, write_model

NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


def save(folder: Path, file: str, scale: float, only: Callable[[str], bool] = lambda name: True) -> list[str]:
    tensors = {name: (scale * value).astype(np.float32) for name, value in weights().items() if only(name)}
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return list(tensors)


def index(folder: Path, homes: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def bare(folder: Path) -> Path:
    write_model(folder)
    (folder / "model.safetensors").unlink()
    return folder


def refusal(folder: Path) -> ColdpressError:
    with pytest.raises(ColdpressError) as caught:
        find_model(str(folder))
    return caught.value


def write_raw(folder: Path, entries: str, data: int) -> Path:
    """A checkpoint whose header is ``entries`` as they are, over ``data`` bytes."""
    bare(folder)
    (folder / "model.safetensors").write_bytes(len(entries).to_bytes(8, "little") + entries.encode() + bytes(data))
    return folder


@pytest.mark.parametrize("chosen", ["both", "chosen", "sharded"])
def test_what_is_read_is_what_transformers_reads(tmp_path: Path, chosen: str):
    folder = bare(tmp_path / "m")
    homes = dict.fromkeys(save(folder, "model-00001-of-00001.safetensors", 3), "model-00001-of-00001.safetensors")
    save(folder, "model.fp16.safetensors", 5)
    save(folder, "consolidated.safetensors", 6)
    index(folder, homes)
    if chosen != "sharded":
        save(folder, "model.safetensors", 1)
    if chosen == "chosen":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "model.fp16.safetensors"}))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = loaded.get_parameter(NORM).detach().numpy()
    np.testing.assert_array_equal(Checkpoint(folder).tensors[NORM].view(), expected)
    np.testing.assert_array_equal(plain_tensors(folder)[NORM].view(), expected)
    np.testing.assert_array_equal(Shards(folder).tensor(NORM).numpy(), expected)


def test_other_weights_are_named_where_the_model_is_found_and_in_its_provenance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = write_model(tmp_path / "m")
    index(
        folder, dict.fromkeys(save(folder, "model-00001-of-00001.safetensors", 3), "model-00001-of-00001.safetensors")
    )
    [remark] = find_model(str(folder)).provenance.remarks
    assert caplog.messages == [remark]
    assert "model-00001-of-00001.safetensors" in remark and INDEX in remark and "not read" in remark


def test_an_index_of_the_one_file_that_is_read_is_nothing_to_remark(tmp_path: Path):
    folder = write_model(tmp_path / "m")
    index(folder, dict.fromkeys(weights(), "model.safetensors"))
    assert not find_model(str(folder)).provenance.remarks


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        (["model-00001-of-00002.safetensors"], f"no {INDEX}", "download"),
        (["model.fp16.safetensors"], "neither model.safetensors nor", "rename it"),
        (["consolidated.safetensors"], "neither model.safetensors nor", "rename it"),
        (["pytorch_model.bin"], "pickle", "save_pretrained"),
    ],
)
def test_a_folder_that_transformers_would_not_load_is_refused_with_a_way_out(
    tmp_path: Path, files: list[str], message: str, hint: str
):
    folder = bare(tmp_path / "m")
    for file in files:
        save(folder, file, 1)
    error = refusal(folder)
    assert message in error.message and files[0] in error.message and hint in (error.hint or "")
    if files[0].endswith(".safetensors"):
        with pytest.raises(OSError, match="no file named"):
            transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_an_adapter_within_a_model_is_refused_as_transformers_would_put_it_on(tmp_path: Path):
    folder = write_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    assert "--adapter_path" in (refusal(folder).hint or "")


def test_shards_may_repeat_a_tensor_but_not_disagree_on_it(tmp_path: Path):
    folder = bare(tmp_path / "m")
    one = save(folder, "a.safetensors", 1, lambda name: name != "model.layers.1.mlp.up_proj.weight")
    other = save(folder, "b.safetensors", 1, lambda name: "up_proj" in name or name == NORM)
    index(folder, {**dict.fromkeys(other, "b.safetensors"), **dict.fromkeys(one, "a.safetensors")})
    assert set(Checkpoint(folder).tensors) == set(weights())
    save(folder, "b.safetensors", 2, lambda name: "up_proj" in name or name == NORM)
    error = refusal(folder)
    assert all(name in error.message for name in ("a.safetensors", "b.safetensors", "other values"))


def test_an_index_that_names_a_tensor_that_is_not_there_is_refused(tmp_path: Path):
    folder = bare(tmp_path / "m")
    names = save(folder, "a.safetensors", 1)
    index(folder, dict.fromkeys([*names, "model.layers.2.mlp.up_proj.weight"], "a.safetensors"))
    assert "'model.layers.2.mlp.up_proj.weight' is not in 'a.safetensors'" in refusal(folder).message


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {"a": 1}}', "no json"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str):
    folder = bare(tmp_path / "m")
    (folder / INDEX).write_text(text)
    assert "is not a safetensors index" in refusal(folder).message


def entry(name: str, start: int, stop: int) -> str:
    return f'"{name}": {{"dtype": "F32", "shape": [4], "data_offsets": [{start}, {stop}]}}'


def header(*entries: str) -> str:
    return "{" + ", ".join(entries) + "}"


ONE = entry("a", 0, 16)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (header(ONE), 12, "ends at byte"),
        (header(ONE), 20, "4 bytes follow tensor 'a'"),
        (header(ONE, ONE), 16, "names 'a' twice"),
        (header(ONE, entry("b", 0, 16)), 16, "overlaps tensor 'a'"),
        (header(ONE, entry("b", 12, 28)), 28, "overlaps tensor 'a'"),
        (header(ONE, entry("b", 20, 36)), 36, "leaves a hole"),
        (header(ONE.split(', "data')[0] + "}"), 16, "does not say where tensor 'a' lies"),
        ('{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}', 16, "its shape [5] needs another number"),
        ('{"a": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}', 16, "has dtype F8_E4M3"),
        ("[1]", 0, "its header is no JSON object"),
        ("{", 0, "its header is not JSON"),
    ],
)
def test_a_broken_file_is_refused_and_says_what_is_wrong(tmp_path: Path, header: str, data: int, message: str):
    assert message in refusal(write_raw(tmp_path / "m", header, data)).message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_no_number_is_found_before_work(tmp_path: Path, value: float):
    tensors = weights()
    tensors["model.layers.1.input_layernorm.weight"][3] = value
    error = refusal(write_model(tmp_path / "m", tensors))
    assert f"tensor 'model.layers.1.input_layernorm.weight' in {tmp_path}" in error.message
    assert f"holds {value} at 3" in error.message
