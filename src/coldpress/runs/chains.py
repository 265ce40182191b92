"""Which passes of a workflow are done together: neighbours that rewrite graphs share one load and one save."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coldpress.jobs.job import Before, Job, Result
from coldpress.models.model import Model
from coldpress.parts import schema
from coldpress.parts.graph_pass import GraphPass, Share
from coldpress.workflow import Step, Workflow

Chain = tuple[Step, ...]


def chains_of(steps: Iterable[Step], begins: Callable[[Step], bool] = lambda step: False) -> list[Chain]:
    """Passes in their order, together those that share a load and a save; ``begins``: which never join those before.

    A pass that means to change what a model computes is alone: whether its neighbours did could not be told by
    comparing what was before them with what came after.
    """
    chains: list[Chain] = []
    for step in steps:
        if chains and _can_share(chains[-1][-1]) and _can_share(step) and not begins(step):
            chains[-1] += (step,)
        else:
            chains.append((step,))
    return chains


def _can_share(step: Step) -> bool:
    made = step.make()
    return isinstance(made, GraphPass) and made.closeness is not None


def job_of(chain: Chain, model: Model, workflow: Workflow) -> Job:
    """The job of passes that are done together."""
    *before, (part, parameters) = [(step.type, schema.plain(step.make())) for step in chain]
    earlier = tuple(Before(*one) for one in before)
    return Job("pass", part, parameters, model, workflow.target, seed=workflow.seed, before=earlier)


@dataclass(frozen=True)
class Link:
    """What passes that were done together made of the model ``before``."""

    chain: Chain
    before: Model
    result: Result

    @property
    def model(self) -> Model:
        assert self.result.model is not None
        return self.result.model

    @property
    def shares(self) -> tuple[Share, ...]:
        """What each of the passes took and said."""
        known, told = self.before.provenance.remarks, self.model.provenance.remarks
        is_more = told[: len(known)] == known
        return self.result.shares or (Share(self.result.seconds, told[len(known) :] if is_more else told),)
