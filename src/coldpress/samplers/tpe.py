"""Tree-structured Parzen estimator: where good points lay before, more are tried.

The method of Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NeurIPS 2011), in Optuna's version for
several objectives with constraints: the goals with a priority are the objectives, limits that a point misses the
constraints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coldpress.parts import Sampler


@dataclass(frozen=True)
class Tpe(Sampler):
    """Learns from the points before; the choice for a few dozen to a few hundred points."""

    startup: int = field(default=10, metadata={"help": "points drawn at random before it learns from them"})
    candidates: int = field(default=24, metadata={"help": "points that the estimator chooses the next one from"})

    def make(self, seed: int) -> Any:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=self.startup, n_ei_candidates=self.candidates)
