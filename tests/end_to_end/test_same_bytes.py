"""The same request gives the same bytes, wherever it is made and by whom, and leaves nothing of us in a home but the
cache."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from coldpress import parts
from coldpress.packaging import write_package
from coldpress.workflow import Package
from tests import onnx_models
from tests.adapters import make_adapter
from tests.conftest import write_model, write_tokenizer
from tests.end_to_end import every_pass
from tests.models.test_gguf import tiny_llama
from tests.models.test_text_part import whole
from tests.passes.conftest import write_text

FEW = (
    *("press-int4", "quantize-gptq", "rotate-quarot", "unpack_gguf", "attach_adapters", "merge_adapter_weights"),
    *("onnx_static_quantization", "onnx_float_to_float16", "onnx_opset_conversion", "session_options-dense"),
)
#: they tell of a run: when it was, how long it took, what was asked for
OF_THE_RUN = ("report.json", "report.html", "README.md", "workflow.yaml")
WEIGHTS = (".data", ".safetensors", ".bin")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_model(folder / "tiny")
    tiny_llama(folder / "tiny.gguf")
    whole("Gemma3ForConditionalGeneration", folder / "multimodal")
    write_tokenizer(folder / "multimodal")
    onnx_models.saved(onnx_models.dense(), folder / "dense")
    onnx_models.saved(onnx_models.convolutional(), folder / "convolutional", external=True)
    write_text(folder / "text.txt")
    _write_adapters(folder)
    return folder


def _write_adapters(folder: Path) -> None:
    """An adapter, and a graph that has one inside."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    tuned = make_adapter(base, folder / "adapter", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(folder), "models"))

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = tuned.base_model.model.model.layers[0].self_attn.q_proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q_proj(x)

    (folder / "exported").mkdir()
    file = folder / "exported" / "model.onnx"
    torch.onnx.export(Attention().eval(), (torch.ones(1, 3, 64),), file, dynamo=False, input_names=["x"])


class Home:
    """A user's home, in which the passes are done by a process of theirs. The user's name is that of the folder."""

    def __init__(self, folder: Path, sources: Path, names: Sequence[str], seed: int):
        self.folder, self.out = folder, folder / "results"
        (folder / "tmp").mkdir(parents=True)
        shutil.copytree(sources, folder / "models")
        environment = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")},
            **{"HOME": str(folder), "TMPDIR": str(folder / "tmp"), "USER": folder.name, "LOGNAME": folder.name},
            **{"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
        }
        words = [every_pass.__file__, folder / "models", self.out, *names]
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        write_package(Package("zipfile"), self.out / names[0], {"format": "onnx"})

    def files(self) -> dict[str, bytes]:
        """All that belongs to the models, by its place below the results; an archive as what is in it."""
        found: dict[str, bytes] = {}
        for file in sorted(self.out.rglob("*")):
            if file.is_file() and file.name not in OF_THE_RUN:
                name = file.relative_to(self.out).as_posix()
                found |= dict(_packed(file, name)) if file.suffix == ".zip" else {name: file.read_bytes()}
        return found

    def names(self) -> list[bytes]:
        """What would tell where and by whom a file was written."""
        known = [str(self.folder), self.folder.name, socket.gethostname(), str(Path(sys.prefix))]
        return [name.encode() for name in known]


def _packed(file: Path, name: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if Path(entry.filename).name not in OF_THE_RUN:
                facts = f"{entry.date_time} {entry.external_attr} {entry.header_offset > 0} {entry.extra!r}"
                yield f"{name}/{entry.filename}", facts.encode() + archive.read(entry)


def are_alike(one: Home, other: Home) -> None:
    first, second = one.files(), other.files()
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    telling = [
        (file, name)
        for file, content in first.items()
        for name in one.names()
        if (len(name) > 6 or not file.endswith(WEIGHTS)) and name in content
    ]
    assert telling == []


@pytest.fixture(scope="module")
def home(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("homes") / "hildegard", sources, FEW, seed=1)


def test_two_users_get_the_same_files(home: Home, sources: Path, tmp_path: Path):
    are_alike(home, Home(tmp_path / "another" / "bo", sources, FEW, seed=2))


def test_a_home_holds_nothing_but_the_cache_afterwards(home: Home):
    known = {"models", "results", "tmp", ".cache"}
    assert {entry.name for entry in home.folder.iterdir()} == known
    assert {entry.name for entry in (home.folder / ".cache").iterdir()} == {"coldpress"}


@pytest.mark.full
def test_two_users_get_the_same_files_of_every_pass(sources: Path, tmp_path: Path):
    one = Home(tmp_path / "hildegard", sources, tuple(every_pass.PASSES), seed=1)
    are_alike(one, Home(tmp_path / "another" / "bo", sources, tuple(every_pass.PASSES), seed=2))


def test_every_pass_is_among_these():
    done = {name for name, _, _ in every_pass.PASSES.values()}
    assert done == {*parts.names("passes")} - {"session_params_tuning"}  # what it writes depends on time
