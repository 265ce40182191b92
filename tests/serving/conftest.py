"""Pressed models to serve, and a server in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from coldpress.models import adapter_folder
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from tests.conftest import TEMPLATE
from tests.tiny_graphs import write_text_classifier, write_word_tokenizer

KEY = "a key with spaces"
WORDS = ("the", "sea", "is", "wide", "and", "blue")
TOOLS_TEMPLATE = "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}" + TEMPLATE


@pytest.fixture(scope="session")
def with_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model with four adapters, in ``model`` as auto-opt writes it."""
    place = tmp_path_factory.mktemp("adapters")
    adapters = {f"a{rank}": write_adapter(place / f"a{rank}", rank) for rank in range(1, 5)}
    adapter_folder.write(place / "tuned", tiny_model, adapters)
    (place / "out/model").mkdir(parents=True)
    Press(precision="fp32").run(Model(place / "tuned", "adapter", "tuned"), Context(place / "out/model"))
    return place / "out"


def write_adapter(folder: Path, rank: int) -> Path:
    """A random adapter for the tiny model, as PEFT has it."""
    dice = np.random.default_rng(rank)
    shapes = {"q_proj": (64, 64), "v_proj": (32, 64)}
    tensors = {}
    for layer in range(2):
        for name, (rows, columns) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = dice.standard_normal((rank, columns)).astype(np.float32) / 8
            tensors[f"{prefix}.lora_B.weight"] = dice.standard_normal((rows, rank)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8 * rank, "target_modules": [*shapes]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def with_tools(with_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same base, with a chat template that knows tools."""
    folder = tmp_path_factory.mktemp("tools") / "tools"
    folder.mkdir()
    for file in (with_adapters / "model").iterdir():
        if file.suffix != ".onnx_adapter" and file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    settings = json.loads((with_adapters / "model/tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TOOLS_TEMPLATE}))
    return folder


@pytest.fixture(scope="session")
def table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(WORDS) + 4, 6)).astype(np.float32)


@pytest.fixture(scope="session")
def encoder(table: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vector of a text is the mean of its tokens' rows in ``table``."""
    folder = tmp_path_factory.mktemp("encoder") / "words"
    write_text_classifier(folder, table)
    write_word_tokenizer(folder, WORDS)
    file = next(folder.glob("*.onnx"))
    model = onnx.load(file)
    for node in model.graph.node:
        node.output[:] = ["sentence_embedding" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "sentence_embedding"
    onnx.save(model, file)
    return folder


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``coldpress serve`` on a free port: its process and its address."""
    command = [sys.executable, "-m", "coldpress", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        lines = []
        while not lines or "/v1; chat at " not in lines[-1]:
            assert server.stderr is not None
            line = server.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
        yield server, lines[-1].rpartition(" at ")[2].strip()
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def address(with_adapters: Path, with_tools: Path, encoder: Path) -> Iterator[str]:
    """A server of three models, one under a name with a slash, that asks for a key."""
    models = [f"org/модель={with_adapters}", with_tools, encoder]
    with serving(*models, "--parallel", "2", "--queue", "30", COLDPRESS_API_KEY=KEY) as (_, address):
        yield address
