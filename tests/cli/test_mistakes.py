"""A wrong request is exit code 2, and a hint that says what to do; nothing is left behind by it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import coldpress
from coldpress import parts
from coldpress.parts import needs
from coldpress.passes.lora import Lora

#: what was typed -> words that the answer has, the hint's among them
TYPED = {
    "auto-opt {model} --device cuda": ("unknown device 'cuda'", "hint: use --device gpu", "CUDAExecutionProvider"),
    "auto-opt {model} --device gpuu": ("hint: did you mean 'gpu'?",),
    "auto-opt {model} --provider cuda": ("hint: did you mean 'CUDAExecutionProvider'?",),
    "auto-opt {model} --provider FooExecutionProvider": ("hint: known: CPUExecutionProvider, CUDAExecutionProvider",),
    "auto-opt {model} --provider directml": ("hint: did you mean 'DmlExecutionProvider'?",),
    "auto-opt nowhere/at/all": ("nowhere/at/all does not exist", "hint: the working directory is"),
    "auto-opt here/modle": ("no folder here/modle", "hint: did you mean 'model'? (here holds it)"),
    "auto-opt here/other": ("no folder here/other", "hint: the working directory is"),
    "auto-opt fake.onnx": ("fake.onnx cannot be read as an ONNX model", "hint: export or download it again"),
    "generate-adapter fake.onnx": ("fake.onnx cannot be read as an ONNX model", "hint: export or download it again"),
    "chat {model} --greedy --temperature 0.5": ("--temperature has no effect", "hint: leave it out, or --greedy"),
    "auto-opt {model} --eval_data rowz.jsonl,rows.jsonl": (
        "'rowz.jsonl' does not exist",
        "hint: did you mean 'rows.jsonl'?",
    ),
    "auto-opt missing.onnx": ("missing.onnx does not exist", "hint: the working directory is"),
    "auto-opt someone/some-modell": ("'someone/some-modell'", "hint: did you mean 'someone/some-model'?"),
    "auto-opt some-model": ("'some-model'", "hint: did you mean 'someone/some-model'?"),
    "auto-opt {model} -o fake.onnx": ("is a file", "hint: name a folder with --output_path"),
    "auto-opt {model} -o fake.onnx/out": ("fake.onnx is a file", "hint: name another folder"),
    "plan fake.onnx": ("cannot be read|is an ONNX model already", "hint:"),
    "chat fake.onnx": ("cannot be read as an ONNX model", "hint: export or download it again"),
    "verify {model}": ("has no report.json", "hint: name the model it was made from", "--source MODEL"),
    "run as_text.yaml": ("passes: text stands where a list belongs", "hint: put it in brackets"),
    "run no_model.yaml": ("'model' is missing", "hint: add 'model: ...': folder, file or hub id"),
    "run indented.yaml": ("indented.yaml, line 4, column 4", "hint: items of one list", "blanks, not tabs"),
    "run comma.json": ("comma.json, line 1", "hint: leave out the comma before the closing bracket"),
    "run comment.json": ("comment.json, line 1", "hint: JSON has no comments"),
    "run comma.jsn": ("does not exist", "hint: did you mean 'comma.json'?"),
    "run-pass --pass pres -m {model}": ("unknown pass 'pres'", "hint: did you mean 'press'?"),
    "run-pass pres {model}": ("unknown pass 'pres'", "hint: did you mean 'press'?"),
    "cache clena": ("there is no command 'cache clena'", "hint: did you mean 'clean'?"),
    "evaluate {model} --metric perplexit": ("unknown metric", "hint: did you mean 'perplexity'?"),
    "auto-opt {model} --max_seq_len 0": ("max_seq_len is 0; at least 2 are needed", "hint: leave it out"),
    "quantize {model} --max_size 5": ("max_size: '5' has no unit", "hint: write 5MB or 5GB"),
    "quantize {model} --max_size 30KB --dry_run": ("do not fit into that", "hint: pass --max_size 0.04MB or more"),
    "quantize {model} --target_bits 2.1 --dry_run": ("do not fit into that", "hint: pass --target_bits 2.57 or more"),
    "finetune {model} --data_files rows.jsonl --text_template {{q}}{{r}} --target_modules qkv_proj --dry_run": (
        "no module 'qkv_proj'; it has",
        "hint: here these are 3 layers: --target_modules q_proj,k_proj,v_proj",
    ),
    "finetune {model} --data_files rows.jsonl --text_template {{q}}{{r}} --target_modules q_prj --dry_run": (
        "hint: did you mean 'q_proj'?",
    ),
}
#: what people type wrong, one line each; {model} is a tiny model that is there
MANY = Path(__file__).with_name("mistakes.txt").read_text(encoding="utf-8").splitlines()
FILES = {
    "fake.onnx": "no graph at all",
    "fake.gguf": "nothing",
    "as_text.yaml": "model: x\npasses: press\n",
    "no_model.yaml": "passes: [press]\n",
    "indented.yaml": "model: x\npasses:\n  - type: press\n   parameters: {}\n",
    "comma.json": '{"model": "x", "passes": ["press"],}',
    "comment.json": '{"model": "x", // mine\n"passes": ["press"]}',
    "rows.jsonl": '{"q": "a", "r": "b"}\n',
    "empty.jsonl": "",
    "broken.jsonl": '{"q": "a"\n',
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "unknown_key.yaml": "model: {model}\npases: [press]\n",
    "unknown_pass.yaml": "model: {model}\npasses: [pres]\n",
    "unknown_parameter.yaml": "model: {model}\npasses: [{type: press, parameters: {precison: int4}}]\n",
    "wrong_type.yaml": "model: {model}\npasses: [{type: press, parameters: {block_size: big}}]\n",
    "bad_choice.yaml": "model: {model}\npasses: [{type: press, parameters: {precision: {choise: [int4, int8]}}}]\n",
    "bad_data.yaml": "model: {model}\npasses: [{type: quantize, parameters: {data: nothere}}]\n",
    "bad_metric.yaml": "model: {model}\nmetrics: [perplexit]\n",
    "bad_goal.yaml": "model: {model}\npasses: [press]\nmetrics: [{type: size, goals: {model_byte: {threshold: 1}}}]\n",
    "bad_sampler.yaml": "model: {model}\npasses: [{type: press, parameters: {block_size: {choice: [32, 64]}}}]\n"
    "metrics: [{type: size, goals: {model_bytes: {priority: 1}}}]\nsearch: {sampler: grd}\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_model):
    """An hour's files, and a hub model that was fetched before."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("{model}", str(tiny_model)))
    for name in ("here/model", "empty"):
        (tmp_path / name).mkdir(parents=True)
    hub = tmp_path / "hub"
    (hub / "models--someone--some-model").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    return tmp_path


@pytest.mark.parametrize("typed", TYPED)
def test_a_mistake_is_answered_with_what_to_do(typed, run, here, tiny_model):
    before = sorted(here.rglob("*"))
    done = run(*(word.format(model=tiny_model) for word in typed.split()))
    assert done.returncode == 2, done.stderr
    assert re.match(r"(note: .*\n|.* so far\n)*error: ", done.stderr) and "Traceback" not in done.stderr, done.stderr
    for words in TYPED[typed]:
        assert any(one in done.stderr for one in words.split("|")), done.stderr
    assert sorted(here.rglob("*")) == before


def test_150_mistakes_have_an_error_and_a_hint_each(run, here, tiny_model):
    """In one test, as each takes a few milliseconds."""
    before, wrong = sorted(here.rglob("*")), []
    for typed in MANY:
        done = run(*(word.format(model=tiny_model) for word in shlex.split(typed)))
        said = re.search(r"^error: .+\n(.*\n)*?hint: .+", done.stderr, re.MULTILINE)
        if done.returncode != 2 or not said or "Traceback" in done.stderr:
            wrong.append(f"{typed}: {done.returncode} {done.stderr or done.stdout[:200]}")
    assert len(MANY) >= 150 and not wrong, "\n".join(wrong)
    assert sorted(here.rglob("*")) == before


def test_an_output_that_cannot_be_written_is_refused_before_any_work(run, here, tiny_model):
    done = run("auto-opt", tiny_model, "-o", "/proc/out")
    assert done.returncode == 2 and "'/proc/out' cannot be written" in done.stderr, done.stderr


def test_python_says_the_same_with_the_hint(here, tiny_model):
    with pytest.raises(coldpress.ColdpressError) as caught:
        coldpress.optimize(tiny_model, device="cuda")
    assert str(caught.value).splitlines() == [caught.value.message, f"hint: {caught.value.hint}"]
    assert "--device gpu" in caught.value.hint


def test_a_missing_package_is_named_by_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(Lora, "needs", ("peft", "no-such-thing"))
    monkeypatch.setattr(needs, "requires", lambda name: ['no-such-thing>=1; extra == "finetune"', "torch>=2.5"])
    with pytest.raises(coldpress.ColdpressError, match="needs no-such-thing") as caught:
        parts.check_needs(Lora)
    assert caught.value.hint == "pip install 'coldpress[finetune]'"
    monkeypatch.setattr(needs, "requires", lambda name: ['no-such-thing-else>=1; extra == "finetune"'])
    assert needs.installing("no-such-thing") == "pip install no-such-thing"


def test_a_layout_that_is_not_the_models_own_is_said_before_training(run, here, tiny_model, caplog):
    def told(template: str) -> str:
        rows = ("--data_files", "rows.jsonl", "--text_template", template)
        done = run("finetune", tiny_model, *rows, "--dry_run")
        assert done.returncode == 0, done.stderr
        return caplog.text

    own = "<|user|>{q}<|end|><|assistant|>{r}<|end|>"
    assert "not the model's own chat template" not in told(own)
    warned = told("### Question: {q}\\n### Answer: {r}")
    assert "text_template is not the model's own chat template" in warned
    assert f"--text_template '{own}'" in warned


def test_a_dry_run_says_what_is_perhaps_not_meant(run, here, tiny_model):
    (here / "empty.yaml").write_text(f"model: {tiny_model}\npasses: []\ntarget: {{provider: QNN}}\n")
    done = run("run", "empty.yaml", "--dry_run")
    assert done.returncode == 0, done.stderr
    for words in ("there are no passes", "there is no output folder", "QNNExecutionProvider is not installed here"):
        assert f"note: {words}" in done.stderr
