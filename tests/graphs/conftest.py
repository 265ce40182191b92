"""Tiny checkpoints of every architecture, made once, and pressed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from tests.architectures import Tiny, checkpoint

Load = Callable[[str], "Tiny"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The tiny checkpoint of an architecture by name; made when first asked for."""

    @cache
    def make(name: str) -> Tiny:
        return checkpoint(name, tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(scope="session")
def pressed(tiny: Load, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """An architecture by name, pressed with options; float activations and all logits unless the options say else."""

    @cache
    def make(name: str, **options: Any) -> Model:
        scratch = tmp_path_factory.mktemp(f"{name}_pressed")
        settings = {"logits": "all", "accuracy_level": 0, **options}
        return Press(**settings).run(Model(tiny(name).folder, "hf", name), Context(scratch))

    return make
