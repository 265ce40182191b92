"""A dry run checks what can be checked here, and says what could not be."""

from __future__ import annotations

import json

import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.models.model import files_of
from coldpress.runs.engine import dry_run
from coldpress.workflow.file import load_workflow

#: of Olive's form, and of coldpress's own
CONFIGS = [
    {
        "input_model": {"type": "HfModel", "model_path": "./elsewhere"},
        "data_configs": [
            {
                "name": "d",
                "type": "HuggingfaceContainer",
                "load_dataset_config": {"data_name": "json", "data_files": "missing.jsonl"},
            }
        ],
        "passes": {"lora": {"type": "LoRA", "train_data_config": "d"}, "build": {"type": "ModelBuilder"}},
        "evaluator": {"metrics": [{"type": "latency", "data_config": "d", "sub_types": [{"name": "avg"}]}]},
    },
    {"model": "./elsewhere.onnx", "passes": ["onnx_float_to_float16"], "target": {"device": "gpu"}},
    {"model": "./elsewhere.gguf", "passes": ["press"]},
    {"model": "./elsewhere", "passes": [{"type": "attach_adapters", "parameters": {"adapter_path": ["missing"]}}, "press"]},
]  # fmt: skip


@pytest.mark.parametrize(("config", "missing"), zip(CONFIGS, [2, 1, 1, 2], strict=True))
def test_what_is_not_here_is_named_and_not_checked(config, missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    workflow = load_workflow(config)
    assert dry_run(workflow, told.append) == workflow.resolved()
    assert len(told) == missing and all(line.startswith("not checked: ") for line in told)
    assert "elsewhere" in told[0] and all("missing" in line for line in told[1:])


def test_what_is_wrong_is_refused_all_the_same():
    with pytest.raises(ColdpressError, match="'press' takes hf or adapter, but gets onnx"):
        dry_run(load_workflow({"model": "./elsewhere", "passes": ["press", "press"]}))
    with pytest.raises(ColdpressError, match="elsewhere does not exist"):
        dry_run(load_workflow({"model": "./elsewhere", "passes": ["press"]}), needed=("model",))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    for name, text in (
        ("w.json", json.dumps({"model": "m", "passes": ["press"]})),
        ("w.yaml", "model: m\npasses: [press]\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_workflow(tmp_path / name).model == "m"


def test_the_cache_may_lie_inside_the_output(tiny_model, tmp_path, monkeypatch):
    """As in the third of the documents' configurations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/cache/results").mkdir(parents=True)  # as a run leaves it that was killed
    workflow = {
        "model": str(tiny_model),
        "output": "out",
        "passes": [{"type": "press", "parameters": {"algorithm": "rtn"}}],
        "verify": {"enabled": False},
        "metrics": [],
        "run": {"cache_dir": "out/cache"},
    }
    assert [coldpress.run(workflow).up_to_date for _ in range(2)] == [False, True]
    assert not any("cache" in file.parts for file in files_of(tmp_path / "out"))
    (tmp_path / "other/notes").mkdir(parents=True)
    with pytest.raises(ColdpressError, match="is not empty"):
        coldpress.run({**workflow, "output": "other"})
