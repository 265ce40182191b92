"""Whether measured numbers differ by more than chance: what is inside the noise is a tie.

Candidates are measured in turns (`turn`), so what disturbs the machine in one round disturbs all of them. Rounds are
therefore compared in pairs: of the logarithms of the ratios ``a[i] / b[i]`` the mean is tested by Student's t,
two-sided at 5 %. It is a tie when the 95 % interval of the mean holds 0. An outlier widens the interval, so that it
makes ties, not winners.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: Student's t for 97.5 %, by degrees of freedom from 1 on; with more than 30 the last one is used, which is on the safe
#: side
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def turn(candidates: Sequence[T], number: int) -> Sequence[T]:
    """The candidates in the order in which round ``number`` measures them: A B, B A, A B, ..."""
    return candidates if number % 2 == 0 else candidates[::-1]


def is_tie(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two candidates differ by no more than noise in one number; ``a[i]`` and ``b[i]`` were measured in round
    ``i``.

    One round tells nothing, so it is a tie, whatever it gave. Where a number is not positive, differences take the
    place of ratios.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"is_tie compares round by round, but got {len(a)} and {len(b)} rounds")
    if len(a) == 1:
        return True
    has_ratios = min(*a, *b) > 0
    pairs = zip(a, b, strict=True)
    differences = [math.log(one / other) if has_ratios else one - other for one, other in pairs]
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    limit = _T[min(len(a) - 1, len(_T)) - 1] * deviation / math.sqrt(len(a))
    return abs(mean) <= limit


def spread(rounds: Sequence[float]) -> dict[str, float | list[float]]:
    """A number that was measured several times: the median ``value``, half the range as ``spread``, and the ``rounds``
    themselves."""
    return {
        "value": statistics.median(rounds),
        "spread": (max(rounds) - min(rounds)) / 2,
        "rounds": list(rounds),
    }
