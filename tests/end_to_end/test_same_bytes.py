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

from coldpress.packaging import write_package
from coldpress.workflow import Package
from tests.end_to_end import every_pass
from tests.sources import write_sources

FEW = (
    *("press-int4", "quantize-gptq", "rotate-quarot", "unpack_gguf", "attach_adapters", "merge_adapter_weights"),
    *("onnx_static_quantization", "onnx_float_to_float16", "onnx_opset_conversion", "session_options-dense"),
)
#: they tell of a run: when it was, how long it took, what was asked for
OF_THE_RUN = ("report.json", "report.html", "README.md", "workflow.yaml")
WEIGHTS = (".data", ".safetensors", ".bin")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


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


@pytest.mark.full
def test_two_users_get_the_same_files(home: Home, sources: Path, tmp_path: Path):
    are_alike(home, Home(tmp_path / "another" / "bo", sources, FEW, seed=2))


def test_a_home_holds_nothing_but_the_cache_afterwards(home: Home):
    known = {"models", "results", "tmp", ".cache"}
    assert {entry.name for entry in home.folder.iterdir()} == known
    assert {entry.name for entry in (home.folder / ".cache").iterdir()} == {"coldpress"}


@pytest.mark.full
def test_two_users_get_the_same_files_of_every_pass(sources: Path, tmp_path: Path):
    one = Home(tmp_path / "hildegard", sources, tuple(every_pass.SAME_BYTES), seed=1)
    are_alike(one, Home(tmp_path / "another" / "bo", sources, tuple(every_pass.SAME_BYTES), seed=2))
