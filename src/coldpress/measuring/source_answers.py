"""What the source itself answers, beside what a model that was made from it answers.

Greedy decoding reads all weights of a source once for each token. The model mostly says the same, so it drafts: one
pass of the source over a draft tells how far it agrees and what it says instead, and the model goes on from there. That
is speculative decoding (Leviathan et al., 2023) without sampling, so what is known is exactly the source's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coldpress.parts import Context
from coldpress.serving.engine import Engine, Sampling

if TYPE_CHECKING:
    from coldpress.networks.reference import Reference


@dataclass
class SourceAnswer:
    """``tokens``: those of the source's answer to ``prompt`` that are known, at most ``limit``; ``draft``: what the
    model says next."""

    prompt: Sequence[int]
    limit: int
    stops: Collection[int]
    draft: list[int]
    tokens: list[int] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return len(self.tokens) >= self.limit or bool(self.tokens and self.tokens[-1] in self.stops)

    def sequence(self) -> np.ndarray:
        """Prompt, what is known and the draft, without the last token, which nothing follows."""
        return np.array([*self.prompt, *self.tokens, *self.draft[:-1]], dtype=np.int64)

    def judge(self, choices: Sequence[int]) -> None:
        """Take over what the source would say at each place of the draft, up to where it says something else."""
        same = next((i for i, (own, said) in enumerate(zip(choices, self.draft, strict=True)) if own != said), None)
        self.tokens += self.draft if same is None else [*self.draft[:same], choices[same]]
        self.draft = []


def finish(
    answers: Sequence[SourceAnswer], reference: Reference, opened: Callable[[], Engine], rounds: int, ctx: Context
) -> None:
    """Go on with the answers that are not whole, for at most ``rounds`` passes over the weights of the source."""
    engine: Engine | None = None
    for done in range(rounds):
        ctx.progress("asking the source", done, rounds)
        waiting = [answer for answer in answers if not answer.is_whole]
        if not waiting:
            return
        engine = engine or opened()
        for answer in waiting:
            known = [*answer.prompt, *answer.tokens]
            answer.draft = engine.generate(known, Sampling(answer.limit - len(answer.tokens))).finished().tokens
        for answer, logits in zip(waiting, reference.logits([one.sequence() for one in waiting]), strict=True):
            answer.judge(logits[-len(answer.draft) :].argmax(axis=-1).tolist())
