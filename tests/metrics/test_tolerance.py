"""Tolerances judge what was measured and are read from a command line."""

from __future__ import annotations

import math

import pytest

from coldpress.errors import ColdpressError
from coldpress.measuring.tolerance import TOLERANCES, Tolerance, judge, judge_adapter, parse_tolerance

GOOD = {"kl": 0.0, "perplexity_ratio": 1.0, "top1_agreement": 1.0, "generation_agreement": 1.0}


def test_a_perfect_model_passes_all():
    assert [judge(GOOD, tolerance) for tolerance in TOLERANCES.values()] == [[]] * len(TOLERANCES)


def test_each_broken_limit_is_named_with_value_and_limit():
    sentences = judge({**GOOD, "kl": 0.7, "top1_agreement": 0.25}, TOLERANCES["int4"])
    assert len(sentences) == 2
    assert "0.7" in sentences[0] and "0.5" in sentences[0]
    assert "0.25" in sentences[1] and "0.55" in sentences[1]


@pytest.mark.parametrize("name", GOOD)
def test_nan_and_missing_numbers_do_not_pass(name):
    assert judge({**GOOD, name: math.nan}, TOLERANCES["int4"])
    missing = judge({key: value for key, value in GOOD.items() if key != name}, TOLERANCES["int4"])
    assert bool(missing) == (name != "generation_agreement")


def test_tighter_precisions_have_tighter_limits():
    limits = [TOLERANCES[name] for name in ("fp32", "fp16", "bf16", "int8", "int4")]
    assert [limit.kl for limit in limits] == sorted(limit.kl for limit in limits)
    assert [limit.top1_agreement for limit in limits] == sorted((x.top1_agreement for x in limits), reverse=True)


def test_faults_of_answers_count_at_any_tolerance():
    faults = {
        "looping_answers": 2,
        "stop_tokens_missing": 1,
        "missing_stop_tokens": [2],
        "prompts_differ": 2,
        "prompts_compared": 5,
        "prompt_difference": "a chat: ...",
    }
    assert len(judge({**GOOD, **faults}, Tolerance())) == 3


@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("0.1", Tolerance(kl=0.1)),
        ("5%", Tolerance(perplexity_ratio=1.05)),
        ("kl=0.1,ppl=1.05", Tolerance(kl=0.1, perplexity_ratio=1.05)),
        ("top1=0.9, generation=0.8", Tolerance(top1_agreement=0.9, generation_agreement=0.8)),
    ],
)
def test_parse(text, tolerance):
    assert parse_tolerance(text) == tolerance


@pytest.mark.parametrize("text", ["", "kl=", "kl=a", "-1", "nan", "kl=0.1;ppl=2", "kll=0.1", "inf"])
def test_parse_refuses(text):
    with pytest.raises(ColdpressError):
        parse_tolerance(text)


def test_parse_suggests_a_name():
    with pytest.raises(ColdpressError) as caught:
        parse_tolerance("top=0.9")
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
    assert judge_adapter(numbers, TOLERANCES["int4"]) == words
