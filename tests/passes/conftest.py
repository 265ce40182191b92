"""A text to calibrate with, and ``quantize`` with settings for tiny models."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import coldpress

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "looked",
    "at",
    "seven",
    "ships",
    "that",
    "sail",
    "to",
    "the",
    "far",
    "island",
    "of",
    "glass",
    "every",
    "morning",
]
OF_DATA = ("data_files", "max_seq_len", "num_samples")
SMALL = {"max_seq_len": 32, "num_samples": 6, "group_size": 16, "tolerance": "kl=9,ppl=99,top1=0"}


def write_text(file: Path) -> Path:
    """Forty lines of thirty words."""
    picked = random.Random(0)
    file.write_text("\n".join(" ".join(picked.choices(WORDS, k=30)) for _ in range(40)))
    return file


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def quantize(tmp_path, text):
    def run(folder: Path, name: str = "quantized", **options):
        settings = {**SMALL, "data_files": (str(text),), **options}
        if settings.get("algorithm") in ("rtn", "hqq"):
            settings = {name: value for name, value in settings.items() if name not in OF_DATA}
        return coldpress.quantize(folder, tmp_path / name, cache_dir=tmp_path / "cache", **settings)

    return run
