"""From adapters to a model that serves them in turns: the lab's commands, the report, the chat."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.errors import ColdpressError
from coldpress.graphs.adapter_file import read_adapter
from coldpress.serving.chat import Conversation, model_folder
from coldpress.serving.engine import Engine, Sampling
from coldpress.workflow.file import load_workflow
from tests.adapters import make_adapter
from tests.packed_folders import pack_folder

RANDOM = "kl=5,ppl=10,top1=0,generation=0"  # a random model has nothing to lose
QUESTION = "where shall we go?"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path_factory.getbasetemp() / "adapters-cache"))


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """PEFT's models of two adapters for the tiny model; their folders are ``.folder``."""
    from transformers import AutoModelForCausalLM

    place, base = tmp_path_factory.mktemp("tuned"), AutoModelForCausalLM.from_pretrained(tiny_model)
    models = {
        "travel": make_adapter(
            base, place / "travel" / "adapter", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]
        ),
        "mood": make_adapter(base, place / "mood", r=2, lora_alpha=8, target_modules="all-linear", use_rslora=True),
    }
    models["travel"].folder, models["mood"].folder = place / "travel" / "adapter", place / "mood"
    return models


@pytest.fixture(scope="module")
def both(tiny_model: Path, tuned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both adapters in one float model, made as the lab prints it."""
    out = tmp_path_factory.mktemp("both") / "out"
    folders = [str(model.folder) for model in tuned.values()]
    command = ["auto-opt", "--model_name_or_path", str(tiny_model), "--adapter_path", *folders, "--device", "cpu"]
    command += ["--provider", "CPUExecutionProvider", "--use_ort_genai", "--output_path", str(out), "--log_level", "1"]
    done = coldpress_(*command, "--precision", "fp32", "--logits", "all")
    assert done.returncode == 0, done.stderr
    return out


def coldpress_(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coldpress", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_layout_is_the_labs_and_each_adapter_is_verified_against_peft(both: Path):
    assert {file.name for file in both.iterdir()} == {
        "model",
        "report.json",
        "report.html",
        "README.md",
        "workflow.yaml",
    }
    files = {file.name for file in (both / "model").iterdir()}
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "travel.onnx_adapter", "mood.onnx_adapter"} <= files
    report = json.loads((both / "report.json").read_text())
    assert report["verdict"] == "verified"
    assert report["quality"]["kl"] < 1e-6
    assert [one["name"] for one in report["adapters"]] == ["mood", "travel"]
    for one in report["adapters"]:
        assert one["reference"] == "PEFT"
        assert one["kl"] < 1e-6
        assert one["kl_without"] > 1e-3
        assert abs(one["effect"] - 1) < 1e-3
    for page in ("report.html", "README.md"):
        assert "Adapter travel" in (both / page).read_text()


def generator(model: Any, adapters: Any, name: str | None, length: int) -> Any:
    import onnxruntime_genai as og

    params = og.GeneratorParams(model)
    params.set_search_options(max_length=length, do_sample=False)
    made = og.Generator(model, params)
    if name:
        made.set_active_adapter(adapters, name)
    return made


def test_onnxruntime_genai_gives_the_logits_of_peft_and_of_the_base(
    both: Path, tuned: dict[str, Any], tiny_model: Path
):
    import onnxruntime_genai as og
    import torch

    plain = coldpress.optimize(tiny_model, None, precision="fp32", logits="all", no_verify=True).model.path
    model, bare = og.Model(str(both / "model")), og.Model(str(plain))
    adapters = og.Adapters(model)
    ids = np.array([0, *range(40, 60)], dtype=np.int32)
    found = {}
    for name in ("travel", "mood"):
        adapters.load(str(both / "model" / f"{name}.onnx_adapter"), name)
    for name in (None, "travel", "mood", None):
        made = generator(model, adapters, name, 64)
        made.append_tokens(ids)
        found[name] = made.get_logits()[0].copy()
        if name:
            with torch.inference_mode():
                expected = tuned[name](torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
            assert np.abs(found[name] - expected[-1]).max() < 1e-3 * expected.std()
    base = generator(bare, None, None, 64)
    base.append_tokens(ids)
    np.testing.assert_array_equal(found[None], base.get_logits()[0])


def test_a_conversation_switches_adapters_and_remembers(both: Path):
    files = {name: both / "model" / f"{name}.onnx_adapter" for name in ("travel", "mood")}
    answers, engine = {}, Engine(model_folder(both), adapters=files)
    for name in (None, *files):
        chat = Conversation(engine, sampling=Sampling(12), adapter=name)
        answers[name] = "".join(chat.ask(QUESTION))
    assert len(set(answers.values())) == 3
    chat = Conversation(engine, sampling=Sampling(12))
    chat.use("travel")
    assert "".join(chat.ask(QUESTION)) == answers["travel"]
    chat.use(None)
    assert chat.adapter is None
    with pytest.raises(ColdpressError, match="no adapter 'travle'") as caught:
        chat.use("travle")
    assert "travel" in caught.value.hint


def test_the_chat_command_takes_adapters_and_says_what_is_wrong_with_them(
    both: Path, tuned: dict[str, Any], tmp_path: Path
):
    travel = f"travel={both / 'model' / 'travel.onnx_adapter'}"
    lines = f"{QUESTION}\n/adapter none\n{QUESTION}\n/adapter trvl\n/adapter travel\n\n"
    done = coldpress_("chat", both, "--adapter", travel, "--max_new_tokens", 8, "--greedy", input=lines)
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert said.count("tokens/s]") == 2
    assert said.index("[no adapter answers]") < said.index("no adapter 'trvl'") < said.index("[travel answers]")
    (tmp_path / "x.onnx_adapter").write_bytes(b"nothing")
    for adapter, words in (
        ("travel", "NAME=PATH"),
        (f"x={tmp_path / 'x.onnx_adapter'}", "is no adapter file"),
        (f"x={tmp_path / 'none.onnx_adapter'}", "does not exist"),
    ):
        done = coldpress_("chat", both, "--adapter", adapter, "--prompt", "hello")
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "/adapter NAME" in coldpress_("chat", "--help").stdout


@pytest.mark.full
def test_codes_of_a_quantized_base_stay_and_its_adapter_is_compared_on_them(tiny_model: Path, tuned, tmp_path: Path):
    from coldpress.quant.grid import Grid

    packed = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(4, 32, False)).folder
    exact = {"head_bits": 16, "embedding_bits": 16, "accuracy_level": 0}
    report = coldpress.optimize(packed, tmp_path / "out", adapter_path=(tuned["travel"].folder,), **exact)
    assert report.data["verdict"] == "verified"
    [travel] = report.data["adapters"]
    assert (travel["name"], travel["file"], travel["reference"]) == ("travel", "adapter_weights.onnx_adapter", "PEFT")
    assert travel["kl"] < 1e-6 < travel["kl_without"]
    plain = coldpress.optimize(packed, None, no_verify=True, **exact).model.path
    assert (plain / "model.onnx.data").read_bytes() == (tmp_path / "out/model/model.onnx.data").read_bytes()


def test_a_wrong_scaling_is_found(tuned: dict[str, Any], tiny_model: Path, tmp_path: Path):
    """The file beside the model was made with another alpha than the folder now says."""
    import shutil

    folder = tmp_path / "ft"
    shutil.copytree(tuned["travel"].folder, folder / "adapter")
    shutil.copytree(tiny_model, folder / "model")
    coldpress.optimize(folder, tmp_path / "out", precision="fp32", no_verify=True)
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": -8}))
    done = coldpress_("verify", tmp_path / "out", "--source", folder, "--tolerance", "kl=50")
    assert done.returncode == 3
    assert re.search(r"adapter ft: it makes -?[\d.]+ times the change that PEFT's makes", done.stdout)
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 8}))
    assert coldpress_("verify", tmp_path / "out", "--source", folder).returncode == 0
    planned = coldpress.plan(folder, precision="fp32")
    assert planned["output_bytes"] == coldpress.plan(tiny_model, precision="fp32")["output_bytes"]


@pytest.mark.full
def test_verify_finds_the_adapters_that_the_report_names(both: Path):
    done = coldpress_("verify", both, "--json")
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["adapters"]] == ["mood", "travel"]


def test_algorithms_that_change_what_layers_read_are_refused_with_adapters(tiny_model: Path, tuned: dict[str, Any]):
    for options in ({"algorithm": "awq"}, {"algorithm": "best"}, {"rotation": "quarot"}):
        with pytest.raises(ColdpressError, match="would not fit"):
            coldpress.optimize(tiny_model, None, adapter_path=(tuned["travel"].folder,), **options)


@pytest.mark.full
def test_olives_configuration_with_an_adapter(tiny_model: Path, tuned: dict[str, Any], tmp_path: Path):
    config = {
        "input_model": {"type": "HfModel", "model_path": str(tiny_model), "adapter_path": str(tuned["mood"].folder)},
        "passes": {"c": {"type": "OnnxConversion"}, "e": {"type": "ExtractAdapters"}},
        "output_dir": str(tmp_path / "out"),
    }
    workflow = load_workflow(config)
    assert [step.type for step in workflow.passes] == ["attach_adapters", "press", "extract_adapters"]
    report = coldpress.run(workflow)
    assert report.data["verdict"] == "verified"
    assert (tmp_path / "out/model/adapter_weights.onnx_adapter").is_file()


@pytest.mark.parametrize(
    ("form", "suffix"), [("onnx_adapter", ".onnx_adapter"), ("safetensors", ".safetensors"), ("numpy", ".npz")]
)
def test_convert_adapters(tuned: dict[str, Any], tmp_path: Path, form: str, suffix: str):
    done = coldpress_(
        *("convert-adapters", "-a", tuned["travel"].folder, "-o", tmp_path / "travel", "--adapter_format", form),
        *("--dtype", "float16", "--json"),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["file"], facts["modules"], facts["ranks"]) == (str(tmp_path / f"travel{suffix}"), 4, [4])
    name = "model.layers.0.self_attn.q_proj.lora_{}.weight"
    if form == "onnx_adapter":
        shapes = {key: tuple(value.shape()) for key, value in read_adapter(tmp_path / "travel.onnx_adapter").items()}
        assert (shapes[name.format("A")], shapes[name.format("B")]) == ((64, 4), (4, 64))
    if form == "numpy":
        arrays = np.load(tmp_path / "travel.npz")
        delta = tuned["travel"].base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default")
        product = arrays[name.format("A")].astype(np.float32) @ arrays[name.format("B")].astype(np.float32)
        np.testing.assert_allclose(product.T, delta.detach().numpy(), atol=1e-2)
        assert arrays[name.format("A")].dtype == np.float16
    assert (
        coldpress_("convert-adapters", "-a", tuned["travel"].folder, "-o", tmp_path / "travel", "-f", form).returncode
        == 2
    )


def test_convert_adapters_fits_the_slots_of_a_model(
    both: Path, tuned: dict[str, Any], tiny_model: Path, tmp_path: Path
):
    done = coldpress_("convert-adapters", "-a", tuned["travel"].folder, "-o", tmp_path / "t", "-m", both)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.onnx_adapter").read_bytes() == (both / "model/travel.onnx_adapter").read_bytes()
    plain = coldpress.optimize(tiny_model, None, precision="fp32", no_verify=True).model.path
    done = coldpress_("convert-adapters", "-a", tuned["travel"].folder, "-o", tmp_path / "u", "-m", plain)
    assert done.returncode == 2 and "has no LoRA slots" in done.stderr
    done = coldpress_("convert-adapters", "-a", tuned["travel"].folder, "-o", tmp_path / "v", "--quantize_int4")
    assert done.returncode == 2 and "slots take floats" in done.stderr


def test_extract_adapters_of_a_checkpoint_that_carries_them(tiny_model: Path, tuned: dict[str, Any], tmp_path: Path):
    """As Phi-4-multimodal does: LoRA tensors by adapter beside the base layers, rank and alpha in config.json."""
    from safetensors.numpy import load_file, save_file

    inside = load_file(tuned["travel"].folder / "adapter_model.safetensors")
    tensors = {
        name.removeprefix("base_model.model.").replace(".weight", ".speech.weight"): value
        for name, value in inside.items()
    }
    folder = tmp_path / "multimodal"
    folder.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "speech_lora": {"r": 4, "lora_alpha": 8}}))
    save_file({**load_file(tiny_model / "model.safetensors"), **tensors}, folder / "model.safetensors")
    done = coldpress_("extract-adapters", "-m", folder, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    [facts] = json.loads(done.stdout)
    assert facts == {"name": "speech", "path": str(tmp_path / "out/speech"), "modules": 4, "ranks": [4]}
    again = load_file(tmp_path / "out/speech/adapter_model.safetensors")
    assert set(again) == set(inside)
    assert all(np.array_equal(again[name], inside[name]) for name in inside)
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(str(tmp_path / "out/speech")).lora_alpha == 8
    done = coldpress_("extract-adapters", "-m", folder, "-o", tmp_path / "files", "--format", "numpy")
    assert done.returncode == 0 and (tmp_path / "files/speech.npz").is_file()
    done = coldpress_("extract-adapters", "-m", tiny_model, "-o", tmp_path / "none")
    assert done.returncode == 2 and "no adapters inside" in done.stderr


@pytest.mark.parametrize("dynamo", [True, False])
def test_generate_adapter_takes_the_weights_out_of_an_exported_model(
    tuned: dict[str, Any], tmp_path: Path, dynamo: bool
):
    """A module with PEFT's layers, exported by torch, is the base afterwards, and itself with the file."""
    import onnxruntime
    import torch

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = tuned["travel"].base_model.model.model.layers[0].self_attn.q_proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q_proj(x)

    module = Attention().eval()
    x = torch.randn(1, 3, 64)
    torch.onnx.export(module, (x,), tmp_path / "m.onnx", dynamo=dynamo, external_data=False, input_names=["x"])
    done = coldpress_("generate-adapter", "-m", tmp_path / "m.onnx", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(next((tmp_path / "out").glob("*.onnx")))
    options, adapter = onnxruntime.RunOptions(), onnxruntime.LoraAdapter()
    adapter.Load(str(tmp_path / "out/adapter_weights.onnx_adapter"))
    options.add_active_adapter(adapter)
    with torch.inference_mode():
        expected, base = module(x).numpy(), module.q_proj.base_layer(x).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], base, atol=1e-5)
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()}, options)[0], expected, atol=1e-5)
    assert {value.name for value in session.get_overridable_initializers()} == {
        "q_proj.lora_A.weight",
        "q_proj.lora_B.weight",
    }
    done = coldpress_("generate-adapter", "-m", tmp_path / "out", "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
