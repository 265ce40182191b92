"""How a number is spread over tokens: its mean and its percentiles, each with its error."""

from __future__ import annotations

from typing import Any

import numpy as np

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def spread(values: np.ndarray) -> dict[str, Any]:
    """``values`` [tokens] as numbers for a report.

    ``mean`` with ``mean_error``, its standard error; ``percentiles`` with ``at``, ``value``, ``low`` and ``high``;
    and ``most``. Between low and high the percentile of all text lies with a probability of about 68 %: these are the
    values one standard deviation of the rank below and above, which is binomial (Conover, Practical Nonparametric
    Statistics). Tokens of one window are not independent of each other, so all errors are rather too small.
    """
    ranked, count = np.sort(values), len(values)
    return {
        "mean": float(ranked.mean()),
        "mean_error": standard_error(ranked),
        "percentiles": [_percentile(ranked, at) for at in PERCENTILES],
        "most": float(ranked[-1]),
        "tokens": count,
    }


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of ``values``; None for fewer than two."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _percentile(ranked: np.ndarray, at: float) -> dict[str, float]:
    share, count = at / 100, len(ranked)
    rank, deviation = share * (count - 1), np.sqrt(count * share * (1 - share))
    low, high = (int(np.clip(np.round(rank + sign * deviation), 0, count - 1)) for sign in (-1, 1))
    value = float(np.quantile(ranked, share))
    return {"at": at, "value": value, "low": float(ranked[low]), "high": float(ranked[high])}
