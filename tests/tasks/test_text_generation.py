"""What text generation is judged by."""

from __future__ import annotations

import math

import pytest

from coldpress.errors import ColdpressError
from coldpress.parts.task import PRECISIONS, find_task

TASK = find_task("text_generation")
GOOD = {"kl": 0.0, "perplexity_ratio": 1.0, "top1_agreement": 1.0, "generation_agreement": 1.0}
INT4 = TASK.limits("int4", None)


def test_a_perfect_model_passes_all():
    assert all(TASK.judge(GOOD, TASK.limits(precision, None)) == [] for precision in PRECISIONS)


def test_each_broken_limit_is_named_with_value_and_limit():
    sentences = TASK.judge({**GOOD, "kl": 0.7, "top1_agreement": 0.25}, INT4)
    assert len(sentences) == 2
    assert "0.7" in sentences[0] and "0.5" in sentences[0]
    assert "0.25" in sentences[1] and "0.55" in sentences[1]


@pytest.mark.parametrize("name", GOOD)
def test_nan_and_missing_numbers_do_not_pass(name):
    assert TASK.judge({**GOOD, name: math.nan}, INT4)
    missing = TASK.judge({key: value for key, value in GOOD.items() if key != name}, INT4)
    assert bool(missing) == (name != "generation_agreement")


def test_faults_of_answers_count_at_any_tolerance():
    faults = {
        "looping_answers": 2,
        "stop_tokens_missing": 1,
        "missing_stop_tokens": [2],
        "prompts_differ": 2,
        "prompts_compared": 5,
        "prompt_difference": "a chat: ...",
    }
    assert len(TASK.judge({**GOOD, **faults}, {})) == 3


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("0.1", {"kl": 0.1}),
        ("5%", {"perplexity_ratio": 1.05}),
        ("kl=0.1,ppl=1.05", {"kl": 0.1, "perplexity_ratio": 1.05}),
        ("top1=0.9, generation=0.8", {"top1_agreement": 0.9, "generation_agreement": 0.8}),
    ],
)
def test_a_tolerance_sets_the_limits_that_it_names(text, limits):
    assert TASK.limits("int4", text) == {**INT4, **limits}


@pytest.mark.parametrize("text", ["", "kl=", "kl=a", "-1", "nan", "kl=0.1;ppl=2", "kll=0.1", "inf", "kl_p99=1"])
def test_a_tolerance_that_cannot_be_read_is_refused(text):
    with pytest.raises(ColdpressError):
        TASK.limits("int4", text or " ")


def test_an_unknown_limit_is_refused_with_the_closest():
    with pytest.raises(ColdpressError) as caught:
        TASK.limits("int4", "top=0.9")
    assert "top1" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"effect": None}, []),
        ({"kl": 0.7}, ["adapter travel: KL divergence from PEFT's is 0.7, above the limit 0.5"]),
        ({"kl": math.nan}, ["adapter travel: KL divergence from PEFT's is nan, above the limit 0.5"]),
        ({"effect": -1.0}, ["adapter travel: it makes -1 times the change that PEFT's makes"]),
        ({"effect": 2.0}, ["adapter travel: it makes 2 times the change that PEFT's makes"]),
    ],
)
def test_an_adapter_is_judged_by_its_divergence_and_its_effect(changes, words):
    numbers = {"name": "travel", "kl": 0.3, "kl_without": 0.4, "effect": 0.97, **changes}
    assert TASK.judge({**GOOD, "adapters": [numbers]}, INT4) == words
