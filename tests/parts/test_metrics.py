"""What every metric promises, of a model of each format that it accepts."""

from __future__ import annotations

import json
import math

import pytest

from coldpress.cli import main
from coldpress.parts import Context, find, names, schema
from coldpress.target import Target
from tests.end_to_end.every_pass import placed
from tests.parts.conftest import contents
from tests.parts.examples import LEFT_OUT, METRICS

#: the harness takes longer to import than all others to measure, adapters to press, and modules to export
SLOW = ("lm_eval", "adapter_divergence", "module_divergence")
CASES = [
    pytest.param(name, form, marks=pytest.mark.full if name in SLOW else (), id=f"{name}-{form}")
    for name, forms in METRICS.items()
    for form in forms
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_numbers_are_those_that_are_promised_and_the_same_each_time(name, form, named, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    model, source, parameters = METRICS[name][form]
    measured, compared = named(model), named(source) if source else None
    before = contents(measured.path)
    made = schema.build(find("metrics", name), placed(parameters, sources), name)
    numbers = []
    for place in (tmp_path / "one", tmp_path / "two"):
        place.mkdir()
        numbers.append(made.measure(measured, Context(place, Target(threads=1), compared)))
    one, two = numbers
    assert measured.format == form
    promised = [number for number in made.values if number not in LEFT_OUT.get((name, form), ())]
    if name == "lm_eval":  # which numbers a task has, only the harness knows
        promised = [number for number in promised if number in one]
    assert promised
    for number in promised:
        assert isinstance(one[number], int | float) and not math.isnan(one[number]), number
    assert json.loads(json.dumps(one)) == one
    if not made.is_timed:
        # what the system gives to a process differs by some pages
        assert [two[number] for number in promised] == pytest.approx(
            [one[number] for number in promised], rel=0.05 if name == "memory" else 0
        )
    assert contents(measured.path) == before


@pytest.mark.parametrize("name", names("metrics"))
def test_a_request_that_cannot_be_ends_with_exit_code_2(name, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.yaml").write_text(f"metrics: [{{type: {name}, parameters: {{no_such: 1}}}}]\n")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(sources / "dense"), "--config", "metrics.yaml"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert "no_such" in said and "metrics[0].parameters" in said
