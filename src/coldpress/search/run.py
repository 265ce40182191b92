"""The loop of a search: propose, try, write down, until a budget is spent, the goals are met or nothing is left to
try."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from statistics import median

from coldpress import parts
from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.measuring.noise import is_tie
from coldpress.parts import schema
from coldpress.report import seconds
from coldpress.search.evaluate import Outcome
from coldpress.search.goals import Judge, ranking_of
from coldpress.search.history import History
from coldpress.search.proposer import Proposer
from coldpress.search.space import Point, Space, held_value
from coldpress.search.trials import FAILED, Trial
from coldpress.workflow import Search, Step

PASS_BY_PASS = "pass_by_pass"
ORDERS = ("joint", PASS_BY_PASS)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is searched and how. ``evaluate`` tries the passes of one point; ``say`` gets a line for each.

    ``workers``: so many points are asked for at once and tried side by side, in threads.
    """

    space: Space
    search: Search
    judge: Judge
    evaluate: Callable[[tuple[Step, ...]], Outcome]
    seed: int = 0
    say: Say = lambda line: None
    workers: int = 1


@dataclass
class Found:
    """What came of a search: its ``trials`` in order, and why it ended.

    ``finals``: for the best points, which were measured again in turns, what each round gave for a number, by label;
    for None those of the source.
    """

    request: Request
    trials: list[Trial] = field(default_factory=list)
    stopped: str = ""
    seconds: float = 0.0
    finals: Mapping[int | None, Mapping[str, list[float]]] = field(default_factory=dict)

    def add(self, trials: Sequence[Trial]) -> None:
        """Add trials that ran side by side: together they took as long as the longest of them."""
        self.trials += trials
        self.seconds += max(trial.seconds for trial in trials)

    @property
    def numbers(self) -> dict[int, Mapping[str, float]]:
        """The numbers of the trials that did not fail, by trial number, as each was measured by itself."""
        return {trial.number: trial.numbers for trial in self.trials if trial.state != FAILED}

    @property
    def finalists(self) -> dict[int, Mapping[str, float]]:
        """The numbers of the points in the finals: medians of the rounds where there are any."""
        return {
            number: {**self.trials[number].numbers, **_medians(rounds)}
            for number, rounds in self.finals.items()
            if number is not None
        }

    @property
    def judge(self) -> Judge:
        """Compares finalists by their rounds, with the source as it was measured among them."""
        source = {**self.request.judge.source, **_medians(self.finals.get(None, {}))}
        return replace(self.request.judge, source=source, ties=self._is_tie)

    def _is_tie(self, label: str, one: int, other: int) -> bool:
        rounds = [self.finals[number].get(label) for number in (one, other)]
        return rounds[0] is not None and rounds[1] is not None and is_tie(rounds[0], rounds[1])

    def ranked(self, count: int) -> list[int]:
        """The numbers of the best trials, best first: finalists by their finals, all others behind them."""
        finalists = self.finalists
        first = self.judge.ranked(finalists, count)
        rest = {number: numbers for number, numbers in self.numbers.items() if number not in finalists}
        return [*first, *self.request.judge.ranked(rest, count - len(first))]

    def steps(self, number: int) -> tuple[Step, ...]:
        return self.request.space.steps_at(self.trials[number].point)

    def best_known(self, number: int) -> tuple[Judge, Mapping[str, float]]:
        """The numbers of a trial, of the finals where it was in them, and what they are compared with."""
        finalists = self.finalists
        if number in finalists:
            return self.judge, finalists[number]
        return self.request.judge, self.trials[number].numbers

    def why(self, chosen: int) -> str:
        """Why a trial was chosen."""
        finalists = self.finalists
        if chosen not in finalists:
            return self.request.judge.why(chosen, self.numbers)
        met = sum(self.request.judge.meets(numbers) for numbers in self.numbers.values())
        before = f"{met} points met all goals at first; the best {len(finalists)} were measured again, in turns. "
        return before + self.judge.why(chosen, finalists)


def _medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    return {label: median(values) for label, values in rounds.items()}


@dataclass(frozen=True)
class _Stage:
    """A part of the space that is searched by itself: one slot, or None for all; and what it may cost."""

    slot: int | None
    trials: float
    seconds: float


def sampler_of(search: Search) -> parts.Sampler:
    """The sampler itself; ColdpressError for an unknown one, and for wrong parameters of it."""
    part = parts.find("samplers", search.sampler)
    parts.check_needs(part)
    made: parts.Sampler = schema.build(part, search.sampler_parameters, f"search.sampler_parameters ({search.sampler})")
    return made


def check_search(space: Space, search: Search) -> None:
    """Raise ColdpressError for a search that has nothing to do, or no end."""
    sampler = sampler_of(search)
    if not space.dimensions:
        raise ColdpressError(
            "there is nothing to search: no pass is left open",
            hint="give a parameter {choice: [...]} or {range: [lowest, highest]}, or a step any_of",
        )
    if search.order not in ORDERS:
        hint = did_you_mean(search.order, ORDERS)
        raise ColdpressError(f"search.order: there is no order '{search.order}'", hint=hint)
    for name in ("trials", "minutes"):
        amount = getattr(search, name)
        if amount is not None and amount <= 0:
            raise ColdpressError(f"search.{name}: {amount} leaves nothing to do", hint="give a number above 0")
    if search.keep < 1:
        raise ColdpressError(f"search.keep: {search.keep} results are none", hint="keep 1 or more")
    if sampler.make(0) is None:
        for dimension in space.dimensions:
            dimension.values()
    elif not space.is_finite and search.trials is None and search.minutes is None:
        raise ColdpressError(
            "a space with a range of floats has no end",
            hint="set search.trials, search.minutes, or a step in the range",
        )


def run(request: Request, history: History) -> Found:
    """Search. Raises ColdpressError when no point at all could be tried."""
    loop = _Loop(request, history)
    loop.run()
    found = loop.found
    if not found.numbers:
        first = found.trials[0]
        raise ColdpressError(
            f"none of the {len(found.trials)} points of the search could be tried; the first: {first.reason}",
            hint=f"the others failed, too; their reasons and tracebacks are in {history.file}",
            exit_code=WORK_FAILED,
        )
    return found


class _Loop:
    def __init__(self, request: Request, history: History):
        self.found = Found(request)
        self._request, self._history = request, history
        self._recorded = history.read()
        self._sampler = sampler_of(request.search)
        self._size = None if request.search.order == PASS_BY_PASS else request.space.size()
        self._directions = {one.label: one.sign > 0 for one in ranking_of(request.judge.objectives)}

    def run(self) -> None:
        for slots_left, slot in self._slots():
            self._search(self._stage(slot, slots_left))
            if self.found.stopped == _GOALS_MET:
                return

    def _slots(self) -> Iterable[tuple[int, int | None]]:
        """What is searched one after the other, each with how many are left, itself included."""
        if self._request.search.order != PASS_BY_PASS:
            return [(1, None)]
        slots = list(dict.fromkeys(dimension.slot for dimension in self._request.space.dimensions))
        return [(len(slots) - index, slot) for index, slot in enumerate(slots)]

    def _stage(self, slot: int | None, slots_left: int) -> _Stage:
        """Each stage gets an equal share of what the stages before it left."""
        search, spent = self._request.search, len(self.found.trials)
        trials = math.inf if search.trials is None else spent + math.ceil((search.trials - spent) / slots_left)
        left = math.inf if search.minutes is None else search.minutes * 60 - self.found.seconds
        return _Stage(slot, trials, self.found.seconds + left / slots_left)

    def _search(self, stage: _Stage) -> None:
        proposer, last = self._proposer(stage.slot), list[Trial]()
        while not (stopped := self._over(stage, last)):
            points = self._asked(proposer, stage)
            if not points:
                stopped = "every point was tried"
                break
            last = self._trials(points, stage.slot)
            for trial in last:
                proposer.tell(trial)
            self.found.add(last)
        self.found.stopped = stopped

    def _asked(self, proposer: Proposer, stage: _Stage) -> dict[int, Point]:
        """The points that are tried next, side by side, by number: those of the record where there is one."""
        points: dict[int, Point] = {}
        first = len(self.found.trials)
        for number in range(first, int(min(first + self._request.workers, stage.trials))):
            point, known = proposer.ask(number), self._recorded.get(number)
            if known is not None and known.point != point:
                proposer.replace(number, point, known.point)
                point = known.point
            if point is None:
                break
            points[number] = point
        return points

    def _trials(self, points: Mapping[int, Point], slot: int | None) -> list[Trial]:
        """What became of points, in the order of their numbers; those that are not known, or failed, are tried."""
        trials = {number: self._recorded[number] for number in points if number in self._recorded}
        trials = {number: trial for number, trial in trials.items() if trial.state != FAILED}
        unknown = [number for number in points if number not in trials]
        for trial in side_by_side(lambda number: self._tried(number, points[number], slot), unknown):
            self._history.add(trial)
            said = f"{described(trial.point)}: {trial.reason or self._said(trial)}"
            self._request.say(f"point {trial.number}{self._how_far(trial)}, {said}")
            trials[trial.number] = trial
        return [trials[number] for number in points]

    def _how_far(self, last: Trial) -> str:
        """How many points there are in all, and how long those that are left may take, as far as that is known."""
        request, search = self._request, self._request.search
        most = [one for one in (search.trials, self._size) if one is not None]
        spent = [trial.seconds for trial in (*self.found.trials, last)]
        left = [sum(spent) / len(spent) * max(0, min(most) - len(spent)) / request.workers] if most else []
        left += [] if search.minutes is None else [search.minutes * 60 - sum(spent) / request.workers]
        of = f" ({last.number + 1} of {min(most)})" if most else ""
        return f"{of}, {seconds(max(0.0, min(left)))} left at most" if left else of

    def _over(self, stage: _Stage, last: Sequence[Trial]) -> str:
        """Why the stage is at its end; empty while it is not. ``last``: the trials since it was not."""
        found, search = self.found, self._request.search
        if search.stop_when_goals_met and any(self._request.judge.meets(trial.numbers) for trial in last):
            return _GOALS_MET
        if len(found.trials) >= stage.trials:
            return f"{search.trials} points were tried"
        return f"{search.minutes:g} minutes were spent" if found.seconds >= stage.seconds else ""

    def _proposer(self, slot: int | None) -> Proposer:
        """A proposer for one slot, the others held at the best so far; or for all."""
        request, held = self._request, {}
        if slot is not None:
            best = self.found.ranked(1)
            base = self.found.trials[best[0]].point if best else {}
            held = {one.name: held_value(one, base) for one in request.space.dimensions if one.slot != slot}
        name = "" if slot is None else str(slot)
        proposer = Proposer(request.space, self._sampler, self._directions, seed=request.seed, held=held, name=name)
        for trial in self.found.trials:
            proposer.skip(trial.point)
        return proposer

    def _tried(self, number: int, point: Point, slot: int | None) -> Trial:
        """Try a point; this may be in a thread of its own."""
        started = time.perf_counter()
        outcome = self._request.evaluate(self._request.space.steps_at(point))
        return Trial(
            number,
            point,
            outcome.state,
            outcome.numbers,
            slot,
            outcome.reason,
            outcome.traceback,
            time.perf_counter() - started,
            self._request.judge.shortfalls(outcome.numbers),
        )

    def _said(self, trial: Trial) -> str:
        ranking = ranking_of(self._request.judge.objectives)
        return ", ".join(one.said(trial.numbers[one.label]) for one in ranking)


_GOALS_MET = "a point meets all goals"


def side_by_side(work: Callable[[int], Trial], numbers: Sequence[int]) -> Iterator[Trial]:
    """Do work for each of some numbers in a thread of its own; results come as they are finished."""
    if len(numbers) < 2:  # in this thread, which an interrupt ends at once
        yield from map(work, numbers)
        return
    with ThreadPoolExecutor(len(numbers)) as threads:
        for done in as_completed([threads.submit(work, number) for number in numbers]):
            yield done.result()


def described(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())
