"""The harness's tasks with our models as backend: the same numbers as with its own backend for transformers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from coldpress.data.texts.tokenization import pretrained_tokenizer
from coldpress.errors import ColdpressError
from coldpress.measuring.harness import Harness, Voice
from coldpress.measuring.inference import open_scorer, open_speaker
from coldpress.metrics.lm_eval import LmEval
from coldpress.parts import Value

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four tasks on three rows: a choice, a last word, the likelihood of whole texts, and an answer in words."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "Water is", "answer": 0, "word": " wet", "text": "Water is wet and cold in winter."},
        {"question": "Fire burns so it is", "answer": 1, "word": " hot", "text": "Fire."},
        {"question": "Ice is", "answer": 1, "word": " cold", "text": "Ice is cold. " * 60},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {
        "pick": ("multiple_choice", "doc_to_choice: [' wet', ' hot and dry']"),
        "last": ("loglikelihood", "doc_to_target: '{{word}}'\nmetric_list: [{metric: perplexity}, {metric: acc}]"),
        "whole": (
            "loglikelihood_rolling",
            "doc_to_text: ''\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: word_perplexity}]",
        ),
        "reply": (
            "generate_until",
            "doc_to_target: '{{word}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 5, do_sample: false}\n"
            "metric_list: [{metric: exact_match}]",
        ),
    }
    for name, (kind, more) in kinds.items():
        text = CHOICE.format(name=name, file=folder / "rows.jsonl", kind=kind, more=more)
        (folder / f"{name}.yaml").write_text(text)
    return folder


ALL = ("pick", "last", "whole", "reply")


def test_numbers_are_those_of_the_harness_itself(pressed, tiny_source, context, tasks):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = HFLM(str(tiny_source.path), device="cpu", dtype="float32", max_length=128, batch_size=1)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = lm_eval.simple_evaluate(own, tasks=list(ALL), task_manager=manager, bootstrap_iters=0)["results"]
    metric = LmEval(tasks=ALL, task_path=str(tasks), max_length=128)
    for model in (tiny_source, pressed("fp32")):
        found = metric.measure(model, context)
        assert found["samples"] == 12
        for task, number in (
            ("pick", "acc"),
            ("last", "perplexity"),
            ("last", "acc"),
            ("whole", "word_perplexity"),
            ("reply", "exact_match"),
        ):
            assert found[f"{task}/{number}"] == pytest.approx(expected[task][f"{number},none"], rel=1e-3), (
                task,
                number,
            )
        assert found["acc"] == pytest.approx((found["pick/acc"] + found["last/acc"]) / 2)


def test_a_limit_below_one_is_a_share(tiny_source, context, tasks):
    assert LmEval(tasks=("pick",), task_path=str(tasks), limit=0.5).measure(tiny_source, context)["samples"] == 2
    with pytest.raises(ColdpressError, match=r"limit: 1\.5 is neither"):
        LmEval(tasks=("pick",), limit=1.5)


def test_answers_end_where_the_task_says(tiny_source, pressed, context):
    answers = []
    for model in (tiny_source, pressed("fp32")):
        voice = Voice(
            pretrained_tokenizer(model.path),
            open_scorer(model, context.target),
            partial(open_speaker, model, context.target),
            64,
        )
        harness = Harness(voice, lambda *progress: None)

        def answer(harness=harness, **settings: object) -> str:
            [text] = harness.generate_until([SimpleNamespace(args=("Water is", {"max_gen_toks": 24, **settings}))])
            return text

        whole = answer()
        stop = next(letter for letter in whole[1:] if letter.isascii())
        assert answer(until=[stop, "never said"]) == whole[: whole.index(stop)]
        assert len(answer(max_gen_toks=3)) < len(whole)
        answers.append(whole)
    assert answers[0] == answers[1]


def test_names_of_numbers_are_known_beforehand():
    values = LmEval(tasks=("pick",)).values
    assert values["pick/acc"] == Value("higher") and values["pick/perplexity"] == Value("lower")
    assert LmEval().values == LmEval.values


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tasks": ()}, "needs the names of tasks"),
        ({"tasks": ("pik",)}, "there is no task 'pik'"),
        ({"tasks": ("pick",), "task_path": "nowhere"}, "no folder nowhere"),
    ],
)
def test_tasks_that_are_not_there_are_said(tiny_source, context, tasks, parameters, words):
    with pytest.raises(ColdpressError, match=words):
        LmEval(**{"task_path": str(tasks), **parameters}).measure(tiny_source, context)


def test_a_task_that_wants_chance_is_refused(tiny_source, context, tasks):
    file = tasks / "reply.yaml"
    file.write_text(file.read_text().replace("do_sample: false", "do_sample: true, temperature: 0.7"))
    with pytest.raises(ColdpressError, match="answers are greedy here"):
        LmEval(tasks=("reply",), task_path=str(tasks)).measure(tiny_source, context)
