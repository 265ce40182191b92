"""Ties: differences inside the noise, told from differences beyond it."""

from __future__ import annotations

import numpy as np
import pytest

from coldpress.measuring.noise import is_tie, spread


def test_a_difference_beyond_the_noise_is_none():
    assert not is_tie([10.0, 10.1, 9.9], [12.0, 12.1, 11.9])
    assert is_tie([10.0, 10.4, 9.7], [10.1, 9.8, 10.2])


def test_a_machine_that_slows_down_slows_both():
    """Rounds are compared in pairs, so what changes from round to round is not taken for noise between candidates."""
    base = np.array([10.0, 20.0, 40.0])
    assert not is_tie(base, base * [1.05, 1.051, 1.049])


def test_an_outlier_makes_a_tie_and_no_winner():
    assert is_tie([10.0, 10.0, 10.0, 30.0], [11.0, 11.0, 11.0, 11.0])


def test_numbers_that_never_vary_are_equal_or_not():
    assert is_tie([5.0, 5.0], [5.0, 5.0])
    assert not is_tie([5.0, 5.0], [5.1, 5.1])
    assert not is_tie([0.0, 0.0, 0.0], [1.0, 1.1, 1.0])


def test_one_round_tells_nothing():
    assert is_tie([1.0], [100.0])
    with pytest.raises(ValueError, match="round by round"):
        is_tie([1.0, 2.0], [1.0])


@pytest.mark.parametrize("rounds", [2, 3, 5, 10])
def test_of_candidates_that_are_alike_one_in_twenty_is_told_apart(rounds):
    random = np.random.default_rng(0)
    told = [not is_tie(*np.exp(0.05 * random.standard_normal((2, rounds)))) for _ in range(2000)]
    assert 0.03 < np.mean(told) < 0.07


def test_a_spread_holds_the_median_and_half_the_range():
    assert spread([3.0, 1.0, 2.0]) == {"value": 2.0, "spread": 1.0, "rounds": [3.0, 1.0, 2.0]}
