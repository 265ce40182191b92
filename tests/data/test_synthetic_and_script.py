"""Batches made up from a model's signature, and batches from a function of the user's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coldpress.errors import WORK_FAILED, ColdpressError
from tests.tiny_graphs import write_linear, write_text_classifier


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    return write_text_classifier(tmp_path / "text", np.zeros((40, 2)))


def test_token_ids_lie_in_the_vocabulary_and_masks_are_ones(batches, text_model):
    found = batches(text_model, "synthetic", batch_size=3, max_samples=7)
    assert [batch.size for batch in found] == [3, 3, 1]
    ids = found[0].inputs["input_ids"]
    assert ids.shape == (3, 128) and ids.dtype == np.int64
    assert ids.min() >= 0 and 35 < ids.max() < 40
    assert (found[0].inputs["attention_mask"] == 1).all()


def test_sizes_shapes_and_ranges_may_be_given(batches, text_model):
    [batch] = batches(text_model, "synthetic", max_samples=1, sizes={"sequence": 5}, ranges={"input_ids": [7, 7]})
    assert batch.inputs["input_ids"].tolist() == [[7] * 5]
    [batch] = batches(text_model, "synthetic", max_samples=1, shapes={"input_ids": [1, 3], "attention_mask": [1, 3]})
    assert batch.inputs["attention_mask"].shape == (1, 3)


def test_the_numbers_are_the_same_each_time(batches, text_model):
    one, two = (batches(text_model, "synthetic")[0].inputs["input_ids"] for _ in range(2))
    assert (one == two).all()
    assert (one != batches(text_model, "synthetic", seed=1)[0].inputs["input_ids"]).any()


def test_images_have_the_models_size(batches, tmp_path):
    folder = write_linear(tmp_path / "image", np.zeros((3 * 32 * 32, 2)), ["N", "C", "H", "W"])
    assert batches(folder, "synthetic")[0].inputs["pixels"].shape == (1, 3, 224, 224)
    (folder / "config.json").write_text(json.dumps({"image_size": 32}))
    assert batches(folder, "synthetic")[0].inputs["pixels"].shape == (1, 3, 32, 32)


def test_an_axis_that_nothing_tells_must_be_given(batches, tmp_path):
    folder = write_linear(tmp_path / "odd", np.zeros((8, 2)), ["N", "features"], name="values")
    with pytest.raises(ColdpressError, match="leaves axis 'features' of its input 'values' open") as caught:
        batches(folder, "synthetic")
    assert caught.value.hint == "give sizes: {features: ...}"
    assert batches(folder, "synthetic", sizes={"features": 8})[0].inputs["values"].shape == (1, 8)
    with pytest.raises(ColdpressError, match="has no input 'value'"):
        batches(folder, "synthetic", shapes={"value": [1, 8]})


def test_a_hugging_face_folder_gets_what_its_config_says(batches, byte_model):
    [batch] = batches(byte_model, "synthetic", max_samples=1, sizes={"sequence": 4})
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.inputs["input_ids"].max() < 512


def script(tmp_path: Path, text: str) -> str:
    file = tmp_path / f"mine_{abs(hash(text))}.py"
    file.write_text(text)
    return str(file)


def test_a_function_gives_batches(batches, text_model, tmp_path):
    file = script(
        tmp_path,
        "import numpy as np\n"
        "def load(model, count):\n"
        "    for index in range(count):\n"
        "        yield {'input_ids': np.full((2, 3), index)}, [0, 1]\n",
    )
    found = batches(text_model, "script", script=file, function="load", arguments={"count": 3})
    assert [batch.inputs["input_ids"][0, 0] for batch in found] == [0, 1, 2]
    assert found[0].labels.tolist() == [0, 1]
    assert len(batches(text_model, "script", script=file, function="load", arguments={"count": 3}, max_batches=2)) == 2


def test_what_a_function_raises_is_marked_as_the_users(batches, text_model, tmp_path):
    file = script(
        tmp_path,
        "def load(model):\n    yield {'input_ids': [[1]]}\n    broken()\ndef broken():\n    raise KeyError('row')\n",
    )
    with pytest.raises(ColdpressError) as caught:
        batches(text_model, "script", script=file, function="load")
    assert f"your script {file} failed in load(): KeyError: 'row'" in caught.value.message
    assert "in broken" in caught.value.message and "user_script.py" not in caught.value.message
    assert caught.value.exit_code == WORK_FAILED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1 / 0\ndef load(model): pass\n", "failed in loading it: ZeroDivisionError"),
        ("def load(\n", "failed in loading it: SyntaxError"),
        ("import sys\nsys.exit(3)\ndef load(model): pass\n", "failed in loading it: SystemExit"),
        ("def lode(model): pass\n", "has no function 'load'"),
        ("def load(): pass\n", "is called with 1 values"),
        ("def load(model): return 5\n", "'int' object is not iterable"),
        ("def load(model): return [5]\n", "not a mapping of input names to arrays"),
        ("def load(model): return [({'a': [1, 2]}, [1])]\n", "2 samples, but 1 labels"),
        ("def load(model): return [{'a': [1, 2], 'b': [1]}]\n", "as many samples"),
        ("def load(model): return []\n", "gave no batch"),
    ],
)
def test_functions_that_do_not_do_what_they_should_are_refused(batches, text_model, tmp_path, text, words):
    with pytest.raises(ColdpressError, match=words):
        batches(text_model, "script", script=script(tmp_path, text), function="load")


def test_a_script_must_be_named_whole(batches, text_model, tmp_path):
    with pytest.raises(ColdpressError, match="does not exist"):
        batches(text_model, "script", script=str(tmp_path / "nothing.py"), function="load")
    with pytest.raises(ColdpressError, match="needs 'script'"):
        batches(text_model, "script", function="load")
