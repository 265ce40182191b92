"""Which point is better: limits, priorities, ties, the Pareto front, and the sentence that says why."""

from __future__ import annotations

import random

import pytest

from coldpress.parts import Value
from coldpress.search.goals import Judge, Objective
from coldpress.workflow import Goal, Measure


def objective(label, better="lower", **goal):
    return Objective(label, Measure(label.partition(".")[0]), Value(better), Goal(**goal))


def judge(*objectives, source=None, **options):
    return Judge(objectives, source or {}, **options)


@pytest.mark.parametrize(
    ("better", "goal", "limit"),
    [
        ("lower", {"threshold": 7.0}, 7.0),
        ("lower", {"max_degradation": 2}, 12.0),
        ("lower", {"max_degradation": "10%"}, 11.0),
        ("lower", {"min_improvement": "25 %"}, 7.5),
        ("higher", {"max_degradation": "1%"}, 9.9),
        ("higher", {"min_improvement": 3.0}, 13.0),
        ("lower", {"threshold": 8.0, "min_improvement": "50%"}, 5.0),
        ("higher", {"threshold": 8.0, "max_degradation": 1}, 9.0),
        ("higher", {"priority": 1}, None),
    ],
)
def test_limits_follow_from_the_goal_and_the_source(better, goal, limit):
    found = objective("m.n", better, **goal).limit({"m.n": 10.0})
    assert found is None if limit is None else found == pytest.approx(limit)


def test_a_number_at_its_limit_meets_the_goal_and_others_miss_it_by_a_share():
    one = objective("m.n", "higher", threshold=0.8)
    assert one.shortfall(0.8, {}) == 0.0
    assert one.shortfall(0.6, {}) == pytest.approx(0.25)
    assert one.shortfall(float("nan"), {}) == float("inf")


POINTS = {
    0: {"a.x": 1.0, "b.y": 9.0},
    1: {"a.x": 1.04, "b.y": 5.0},
    2: {"a.x": 3.0, "b.y": 1.0},
    3: {"a.x": 0.5, "b.y": 20.0},
    4: {"a.x": 0.1},
}


def test_points_that_meet_all_goals_come_first_then_the_nearest_then_what_is_not_known():
    found = judge(objective("a.x", priority=1), objective("b.y", threshold=10))
    assert found.ranked(POINTS, 5) == [0, 1, 2, 3, 4]
    assert found.ranked(POINTS, 2) == [0, 1]


def test_the_second_priority_decides_between_ties():
    ordered = objective("a.x", priority=1), objective("b.y", priority=2, threshold=10)
    assert judge(*ordered).ranked(POINTS, 1) == [0]

    def within_a_tenth(label, one, other):
        return abs(POINTS[one][label] - POINTS[other][label]) <= 0.1

    tied = judge(*ordered, ties=within_a_tenth)
    assert tied.ranked(POINTS, 1) == [1]
    why = tied.why(1, POINTS)
    assert "Of 3 points that meet all goals, point 1" in why and "Point 0" in why and "noise" in why


def test_why_says_what_is_missed_when_no_point_meets_all_goals():
    found = judge(objective("a.x", priority=1, threshold=0.2), source={"a.x": 2.0})
    points = {0: {"a.x": 0.4}, 1: {"a.x": 0.3}}
    assert found.ranked(points, 1) == [1]
    assert found.why(1, points) == (
        "No point meets all goals; point 1 comes nearest: a.x 0.3 is above the limit 0.2. It has a.x 0.3 (source 2)."
    )


def test_the_front_is_what_nothing_dominates():
    numbers = random.Random(1)
    points = {i: {"a.x": numbers.randrange(20), "b.y": numbers.randrange(20), "c.z": numbers.randrange(20)}
              for i in range(200)}  # fmt: skip
    found = judge(objective("a.x"), objective("b.y", "higher"), objective("c.z"))

    def row(i):
        return points[i]["a.x"], -points[i]["b.y"], points[i]["c.z"]

    def dominated(i):
        return any(row(j) != row(i) and all(a <= b for a, b in zip(row(j), row(i), strict=True)) for j in points)

    assert found.front(points) == [i for i in points if not dominated(i)]


def test_only_numbers_with_a_priority_make_the_front_if_any_has_one():
    found = judge(objective("a.x", priority=1), objective("b.y", threshold=10))
    assert found.front(POINTS) == [4]
