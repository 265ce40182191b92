"""The windows that a pass calibrates on, from data of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coldpress.data.batches.calibration import expected_tokens, windows
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.parts import Context, DataSource


@pytest.fixture
def model(tmp_path: Path) -> Model:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"max_position_embeddings": 6}))
    return Model(tmp_path / "model", "hf", "")


def source(tmp_path: Path, body: str, **parameters: object) -> DataSource:
    """Data of a script with these lines in its generator."""
    (tmp_path / "batches.py").write_text(f"import numpy as np\n\ndef batches(model):\n{body}\n")
    return DataSource("script", {"script": str(tmp_path / "batches.py"), "function": "batches", **parameters})


def test_rows_of_one_length_are_windows_as_they_are(model, tmp_path):
    data = source(
        tmp_path, "    yield {'input_ids': np.arange(8).reshape(2, 4)}\n    yield {'input_ids': np.ones((1, 4))}"
    )
    found = windows(data, model, Context(tmp_path))
    assert found.ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 1, 1, 1]]
    assert found.ids.dtype == np.int64 and found.sources == "data of the kind script"


def test_other_rows_are_packed_without_their_padding(model, tmp_path):
    batch = "{'input_ids': np.array([[1, 2, 3], [4, 0, 0], [0, 5, 6]]), 'attention_mask': np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1]])}"
    found = windows(source(tmp_path, f"    yield {batch}"), model, Context(tmp_path))
    assert found.ids.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_data_without_an_end_is_read_for_128_windows(model, tmp_path):
    endless = "    while True:\n        yield {'input_ids': np.ones((3, 4), int)}"
    assert windows(source(tmp_path, endless), model, Context(tmp_path)).ids.shape == (128, 4)
    assert windows(source(tmp_path, endless, max_batches=50), model, Context(tmp_path)).ids.shape == (150, 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    yield {'pixels': np.ones((1, 4))}", "kind script gives pixels"),
        ("    yield {'input_ids': np.ones((1, 7))}", "rows of 7 tokens; the model has 6 positions"),
        ("    yield {'input_ids': np.ones((2, 1))}", "no row of two tokens"),
    ],
)
def test_what_gives_no_windows_is_refused(body, message, model, tmp_path):
    with pytest.raises(ColdpressError, match=message):
        windows(source(tmp_path, body), model, Context(tmp_path))


def test_how_much_is_expected():
    assert expected_tokens(DataSource("calibration_text", {"max_samples": 6, "max_seq_len": 32}), 64) == 192
    assert expected_tokens(DataSource("text_corpus", {"max_samples": 6, "max_seq_len": 32}), 64) == 192
    few, many = (
        expected_tokens(DataSource("calibration_text", {"max_samples": None, "max_seq_len": 8}), widest)
        for widest in (64, 6400)
    )
    assert few % 8 == many % 8 == 0
    assert many == pytest.approx(10 * few, rel=0.1)  # it grows with the root of the inputs
