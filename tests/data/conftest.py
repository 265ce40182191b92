from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coldpress.models.model import Model, content_key
from coldpress.parts import Batch, Context, DataSource
from tests.conftest import CONFIG, write_tokenizer

Batches = Callable[..., list[Batch]]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "scratch").mkdir()
    return Context(tmp_path / "scratch")


@pytest.fixture
def batches(context: Context) -> Batches:
    """All batches of a kind of data for a model folder: ``batches(folder, kind, **parameters)``."""

    def made(folder: Path, kind: str, /, **parameters: Any) -> list[Batch]:
        form = "onnx" if any(folder.glob("*.onnx")) else "hf"
        return list(DataSource(kind, parameters).batches(Model(folder, form, content_key(folder)), context))

    return made


@pytest.fixture
def byte_model(tmp_path: Path) -> Path:
    """A folder with a tokenizer of one token a byte; BOS is <s>, which it does not add, EOS <|end|>."""
    import json

    folder = tmp_path / "byte-model"
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
