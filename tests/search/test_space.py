"""What may be left open, and what a point of it means."""

from __future__ import annotations

import pytest

from coldpress.errors import ColdpressError
from coldpress.search.space import Space
from coldpress.workflow import Step


def dial(**parameters):
    return Step("dial", parameters)


def points(*steps):
    space = Space.of(steps)
    return [[(step.type, step.parameters) for step in space.steps_at(point)] for point in space.points()]


def test_choices_multiply_and_the_last_changes_fastest():
    found = points(dial(y={"choice": [1, 2]}, mode="plain"), Step("crush", {"bits": {"choice": [8, 4]}}))
    assert found == [
        [("dial", {"mode": "plain", "y": y}), ("crush", {"bits": bits})] for y in (1, 2) for bits in (8, 4)
    ]


def test_ranges_of_whole_numbers_and_with_a_step_are_finite():
    assert [p[0][1]["y"] for p in points(dial(y={"range": [2, 5]}))] == [2, 3, 4, 5]
    assert [p[0][1]["y"] for p in points(dial(y={"range": [2, 9], "step": 3}))] == [2, 5, 8]
    assert [p[0][1]["x"] for p in points(dial(x={"range": [0, 1], "step": 0.25}))] == [0, 0.25, 0.5, 0.75, 1]
    space = Space.of([dial(x={"range": [0.0, 1.0]})])
    assert not space.is_finite and space.size() is None


def test_a_parameter_is_open_only_where_its_condition_holds():
    extra = {"choice": [1, 2], "when": {"mode": "fancy"}}
    found = points(dial(extra=extra, mode={"choice": ["plain", "fancy"]}))
    assert found == [
        [("dial", {"mode": "plain"})],
        [("dial", {"mode": "fancy", "extra": 1})],
        [("dial", {"mode": "fancy", "extra": 2})],
    ]


def test_a_condition_may_name_closed_parameters_and_defaults():
    extra = {"choice": [1, 2], "when": {"mode": ["fancy", "broken"]}, "otherwise": 7}
    assert len(points(dial(extra=extra, mode="fancy"))) == 2
    assert points(dial(extra=extra)) == [[("dial", {"extra": 7})]]


def test_alternatives_and_optional_steps():
    found = points(Step(any_of=(Step("crush", {"bits": {"choice": [4, 2]}}), dial(y=3))), Step("crush", optional=True))
    assert [[name for name, _ in steps] for steps in found] == [
        ["crush", "crush"], ["crush"], ["crush", "crush"], ["crush"], ["dial", "crush"], ["dial"],
    ]  # fmt: skip
    assert found[4] == [("dial", {"y": 3}), ("crush", {})]


def test_every_value_occurs_where_it_can():
    extra = {"choice": [1, 2], "when": {"mode": "fancy"}}
    space = Space.of([Step(any_of=(Step("crush"), dial(extra=extra, mode={"choice": ["plain", "fancy"]})))])
    met = {(name, value) for point in space.each_value() for name, value in point.items()}
    assert {("dial.extra", 1), ("dial.extra", 2), ("step 1", "crush"), ("dial.mode", "plain")} <= met


def test_equal_passes_have_names_of_their_own():
    space = Space.of([Step("crush", {"bits": {"choice": [8, 4]}}), Step("crush", {"bits": {"choice": [4, 2]}})])
    assert [dimension.name for dimension in space.dimensions] == ["crush.bits", "crush-2.bits"]


@pytest.mark.parametrize(
    ("step", "place", "hint"),
    [
        (dial(y={"choice": []}), "dial.y", "pick from"),
        (dial(y={"choice": [1, 1]}), "dial.y", "leave one out"),
        (dial(y={"choice": [1, "two"]}), "y", ""),
        (dial(mode={"choice": ["plain", "fancie"]}), "dial.mode", "fancy"),
        (dial(yy={"choice": [1, 2]}), "yy", "y"),
        (dial(y={"range": [3, 1]}), "dial.y", "lowest"),
        (dial(y={"range": [1]}), "dial.y", "lowest"),
        (dial(y={"range": [1, 4], "step": 0.5}), "dial.y", "whole"),
        (dial(x={"range": [0, 1], "log": True}), "dial.x", "log"),
        (dial(x={"range": [0.1, 1], "stepp": 0.1}), "dial.x", "step"),
        (dial(y={"choice": [1, 2], "log": True}), "dial.y", "when"),
        (dial(y={"choice": [1, 2], "when": {"moed": "fancy"}}), "dial.y", "mode"),
        (dial(y={"choice": [1, 2], "when": "fancy"}), "dial.y", "when"),
        (dial(y={"choice": [1], "when": {"extra": 1}}, extra={"choice": [1], "when": {"y": 1}}), "circle", ""),
        (Step("dial", {}, (Step("crush"),)), "any_of", "alternatives"),
        (Step(any_of=(Step(),)), "names no pass", "list"),
        (Step("dail"), "dail", "dial"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(step, place, hint):
    with pytest.raises(ColdpressError) as caught:
        Space.of([step])
    assert place in caught.value.message
    assert hint in (caught.value.hint or "")
