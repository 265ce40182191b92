"""NSGA-II: generations of points, whose best are crossed and changed at random.

The method of Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002), in Optuna's version. It
looks for the whole Pareto front, and needs a few hundred points for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coldpress.parts import Sampler


@dataclass(frozen=True)
class Nsga2(Sampler):
    """A genetic algorithm for several objectives and many points."""

    population: int = field(default=20, metadata={"help": "points in a generation"})
    mutation: float | None = field(
        default=None, metadata={"help": "chance that a parameter changes at random; default: one of them on average"}
    )
    crossover: float = field(default=0.9, metadata={"help": "chance that a point has two parents"})

    def make(self, seed: int) -> Any:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            seed=seed,
            population_size=self.population,
            mutation_prob=self.mutation,
            crossover_prob=self.crossover,
        )
