"""Points drawn at random, each independent of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coldpress.parts import Sampler


@dataclass(frozen=True)
class Random(Sampler):
    """Every value of a parameter is as likely as any other."""

    def make(self, seed: int) -> Any:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)
