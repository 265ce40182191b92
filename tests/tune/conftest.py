"""Rows to train on, and ``finetune`` with settings for tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.tune.rows import NOT_SCORED, Row, Rows

PLACES = ("the market", "a quiet lake", "the old bridge", "the harbour", "a tower", "the museum")
TEMPLATE = "<|user|>{prompt}<|end|><|assistant|>{response}<|end|>"
FAST = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01}


def make_rows(*lengths: int, seed: int = 0, answers_from: int = 0) -> Rows:
    """Random rows of these lengths, of which nothing before ``answers_from`` is to be predicted."""
    random = np.random.default_rng(seed)
    found = []
    for length in lengths:
        ids = random.integers(5, 250, length).astype(np.int32)
        targets = np.append(ids[1:], NOT_SCORED).astype(np.int32)
        targets[: max(0, answers_from - 1)] = NOT_SCORED
        found.append(Row(ids, targets))
    return Rows(found)


@pytest.fixture(scope="session")
def travel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty questions about places and what to see there."""
    file = tmp_path_factory.mktemp("rows") / "travel.jsonl"
    rows = (
        {"prompt": f"what is in town {number}", "response": f"go to {PLACES[number % len(PLACES)]}, then rest"}
        for number in range(30)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def finetune(tmp_path: Path, travel: Path) -> Callable[..., coldpress.Report]:
    """``finetune(model, name, training_args={...}, **options)`` on the travel rows, in float32."""

    def run(model: Path, name: str = "tuned", training_args: dict[str, Any] | None = None, **options: Any) -> Any:
        settings = {
            "data_files": (str(travel),),
            "text_template": TEMPLATE,
            "lora_r": 4,
            "torch_dtype": "float32",
            "threads": 1,
            "cache_dir": tmp_path / "cache",
            **options,
        }
        return coldpress.finetune(model, tmp_path / name, training_args={**FAST, **(training_args or {})}, **settings)

    return run
