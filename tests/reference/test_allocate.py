"""Bits within a budget against all combinations, and against a bound where there are too many of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.quant.allocate import Choice, allocate, together

Items = dict[str, dict[int, Choice]]


def make_items(seed: int, groups: int, largest: int = 60) -> Items:
    """Groups of various sizes whose errors fall about four times a bit."""
    random = np.random.default_rng(seed)
    items: Items = {}
    for group in range(groups):
        weights, error = int(random.integers(5, largest)), float(random.lognormal(0, 2))
        noise = random.uniform(0.5, 1.5, 3)
        items[f"layer {group}"] = {
            bits: Choice(weights * bits, error * 4.0**-bits * float(noise[place]))
            for place, bits in enumerate((2, 4, 8))
        }
    return items


def cost(items: Items, bits: dict[str, int]) -> tuple[int, float]:
    chosen = [items[name][bits[name]] for name in items]
    return sum(choice.size for choice in chosen), sum(choice.error for choice in chosen)


def best_of_all(items: Items, budget: int) -> float:
    combinations = itertools.product(*(choices.values() for choices in items.values()))
    return min(
        sum(choice.error for choice in one) for one in combinations if sum(choice.size for choice in one) <= budget
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.7, 1.0, 2.0])
def test_nothing_within_the_budget_is_better(seed: int, share: float) -> None:
    items = make_items(seed, 7)
    low, high = (cost(items, dict.fromkeys(items, bits))[0] for bits in (2, 8))
    budget = int(low + share * (high - low))
    size, error = cost(items, allocate(items, budget))
    assert size <= budget
    assert error == pytest.approx(best_of_all(items, budget), rel=1e-9)


def test_a_network_of_odd_sizes_comes_close_to_the_bound() -> None:
    items = make_items(10, 250, largest=10_000_000)
    low, high = (cost(items, dict.fromkeys(items, bits))[0] for bits in (2, 8))
    budget = (low + high) // 3
    size, error = cost(items, allocate(items, budget))
    # for any price of a byte, the cheapest choices with their price give a lower bound of the error
    bound = max(
        sum(min(choice.error + price * choice.size for choice in choices.values()) for choices in items.values())
        - price * budget
        for price in np.geomspace(1e-14, 1e-6, 400)
    )
    assert size <= budget
    assert bound <= error < 1.002 * bound


def test_layers_together_add_up_and_share_their_bits() -> None:
    first = {2: Choice(10, 4.0), 4: Choice(20, 1.0)}
    second = {4: Choice(7, 0.5), 8: Choice(14, 0.25)}
    assert together([first, second]) == {4: Choice(27, 1.5)}


def test_more_bits_are_not_taken_where_they_do_not_help() -> None:
    items = {"a": {4: Choice(4, 1.0), 8: Choice(8, 1.0)}, "b": {4: Choice(4, 1.0), 8: Choice(8, 0.5)}}
    assert allocate(items, 1000) == {"a": 4, "b": 8}


def test_a_budget_that_is_too_small_names_the_smallest() -> None:
    items = {"a": {2: Choice(1000, 1.0), 4: Choice(2000, 0.1)}, "b": {4: Choice(500, 1.0)}}
    assert allocate(items, 1500) == {"a": 2, "b": 4}
    with pytest.raises(ColdpressError, match="1,499") as raised:
        allocate(items, 1499)
    assert "1,500" in str(raised.value.hint)


def test_groups_that_cannot_be_weighed_are_refused() -> None:
    with pytest.raises(ColdpressError, match="no bits"):
        allocate({"a": {}}, 100)
    with pytest.raises(ColdpressError, match="not finite"):
        allocate({"a": {4: Choice(1, float("nan"))}}, 100)
    assert allocate({}, 0) == {}
