"""What is asked of every ONNX model that a pass wrote: that it opens and runs, and that it computes what the graph
before did.

How near it must stay is the pass's own word (`coldpress.parts.Closeness`). One that does not open ends the run, so that
nothing is written; one that is worse than its pass allows is written with exit code 3, as any model that is worse than
its tolerance.

Of passes that were done together there is one result, which may lose what they may lose together. Where it loses more,
or does not open, they are done once more, one by one, and each is asked the same: so the one that broke it is named.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError, naming
from coldpress.jobs.job import Job, Result
from coldpress.jobs.system import Executor
from coldpress.models.model import Model, files_of
from coldpress.models.planned import Planned
from coldpress.parts import Closeness
from coldpress.parts.schema import plain
from coldpress.parts.task import RELATIVE, parse_tolerance
from coldpress.runs.chains import Link, job_of
from coldpress.runs.verification import UNVERIFIED, VERIFIED, WORSE, Verdict
from coldpress.workflow import Step, Workflow


@dataclass(frozen=True)
class Opened:
    """What was found of the result of one step.

    ``unknown``: why it was not compared with the graph before; "" if it was.

    ``worse``: the broken limit, in words. ``numbers``: those of the metric ``graph_divergence``.
    """

    step: str
    unknown: str = ""
    worse: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Opener:
    """Opens what steps of a workflow wrote, in fresh processes."""

    workflow: Workflow
    executor: Executor

    def found(self, link: Link, compare: bool) -> list[Opened]:
        """Open the ONNX model that passes wrote; with ``compare``, hold it against the one before, if that is one.

        ColdpressError, naming the pass, where it does not open, or does not run on what the graph before runs on.
        """
        if len(link.chain) == 1:
            return [self._of_pass(link.chain[0], link.before, link.model, compare)]
        name = " and ".join(step.type for step in link.chain)
        if _is_as_before(link.before.path, link.model.path):
            return [Opened(name)]
        limit = added_up(link.chain)
        try:
            if not compare or limit is None:
                return [self._only_opened(name, link.model)]
            opened = self.compared(name, link.before, link.model, limit, renamed_by(link.chain), _data(link.chain))
        except ColdpressError:
            self._one_by_one(link, compare)  # ends with the pass that did it
            raise
        worse = [one for one in self._one_by_one(link, compare) if one.worse] if opened.worse else []
        return worse or [opened]

    def _one_by_one(self, link: Link, compare: bool) -> list[Opened]:
        """What is found of each pass alone."""
        before, found = link.before, []
        for step in link.chain:
            alone = Link((step,), before, self.executor.result(job_of((step,), before, self.workflow)))
            found += self.found(alone, compare)
            before = alone.model
        return found

    def _of_pass(self, step: Step, before: Model, after: Model, compare: bool) -> Opened:
        if before.format == "onnx" and _is_as_before(before.path, after.path):
            return Opened(step.type)
        limit = step.make().closeness if before.format == "onnx" else None
        if not compare:
            return self._only_opened(step.type, after)
        if limit is None:
            return self._only_opened(step.type, after, f"{step.type} means to change what a model computes")
        return self.compared(step.type, before, after, limit, renamed_by([step]), _data([step]))

    def _only_opened(self, name: str, after: Model, why: str = "verification was turned off") -> Opened:
        return Opened(name, why, seconds=self._measured(name, after, None, {}).seconds)

    def compared(
        self, name: str, before: Model, after: Model, limit: Closeness, renamed: Mapping[str, str], data: Any = None
    ) -> Opened:
        """What ``name`` made of an ONNX model, compared with that on ``data`` or made-up inputs."""
        own = _relative(self.workflow.verify.tolerance)
        asked = limit.relative if own is None else own
        how = {"data": plain(data), "limit": asked, "renamed": dict(renamed)}
        result = self._measured(name, after, before, how)
        numbers = result.numbers
        if numbers.get("unknown"):
            return Opened(name, f"{name}: {numbers['unknown']}", seconds=result.seconds)
        why = "the limit that was asked for" if own is not None else limit.why
        worse = "" if numbers["relative"] <= numbers["allowed"] else _worse(name, numbers, why)
        return Opened(name, "", worse, {"step": name, **numbers}, result.seconds)

    def _measured(self, name: str, after: Model, before: Model | None, parameters: dict[str, Any]) -> Result:
        job = Job("metric", "graph_divergence", parameters, after, self.workflow.target, before)
        with naming(f"what {name} wrote cannot be used"):
            return self.executor.result(job)


def _relative(tolerance: str | None) -> float | None:
    """The limit for graphs made from graphs that a tolerance sets, if it does."""
    return parse_tolerance(tolerance).get(RELATIVE) if tolerance else None


def _data(chain: Iterable[Step]) -> Any:
    """The data that a pass among these was given."""
    made = [step.make() for step in chain]
    return next((found for one in made for name in parts.data_fields(type(one)) if (found := getattr(one, name))), None)


def renamed_by(chain: Iterable[Step]) -> dict[str, str]:
    """What inputs and outputs are called after passes: the name before -> the name afterwards."""
    return parts.renamed_in_a_row(step.make() for step in chain)


def _is_as_before(before: Path, after: Path) -> bool:
    """Whether a step left the graphs, their tensors and how they are opened as they were; then nothing has to be
    tried."""
    old, new = _decisive(before), _decisive(after)
    return old.keys() == new.keys() and all(
        old[name].samefile(new[name]) or filecmp.cmp(old[name], new[name], shallow=False) for name in old
    )


def _decisive(path: Path) -> dict[str, Path]:
    """The files of a model that decide what it computes."""
    from coldpress.graphs.session import OPTIONS_FILE

    if path.is_file():
        return {}
    return {
        file.relative_to(path).as_posix(): file
        for file in files_of(path)
        if file.name == OPTIONS_FILE or file.suffix not in _SETTINGS
    }


#: files beside a graph that it does not read
_SETTINGS = (".json", ".txt", ".md", ".jinja", ".html", ".yaml")


def _worse(name: str, numbers: Mapping[str, Any], why: str) -> str:
    far = "is not the same kind of values" if numbers["relative"] >= 1e9 else f"differs by {numbers['relative']:.2g}"
    return (
        f"{name}: output '{numbers['output']}' of {numbers['graph']} {far} from the graph before, above the limit "
        f"{numbers['allowed']:.2g} ({why})"
    )


def with_graphs(verdict: Verdict, found: Sequence[Opened], is_whole: bool) -> Verdict:
    """A verdict, and what was found of the steps. ``is_whole``: these lead from the source to the result without a gap,
    so that they are all that there is to compare.
    """
    worse = [one.worse for one in found if one.worse]
    seconds = verdict.seconds + sum(one.seconds for one in found)
    numbers = {**verdict.numbers, **_numbers(found)}
    known = replace(verdict, numbers=numbers, seconds=seconds)
    if worse:
        others = verdict.reasons if verdict.verdict == WORSE else []
        return replace(known, verdict=WORSE, reasons=[*others, *worse])
    if not is_whole or verdict.verdict != UNVERIFIED:
        return known
    unknown = list(dict.fromkeys(one.unknown for one in found if one.unknown))
    if unknown or not found:
        return replace(known, reasons=unknown or verdict.reasons)
    return replace(known, verdict=VERIFIED, reasons=[])


def _numbers(found: Sequence[Opened]) -> dict[str, Any]:
    compared = [dict(one.numbers) for one in found if one.numbers]
    if not compared:
        return {}
    worst = max(compared, key=lambda one: one["relative"] / max(one["allowed"], 1e-12))
    return {"relative": worst["relative"], "relative_limit": worst["allowed"], "graphs": compared}


def added_up(steps: Sequence[Step]) -> Closeness | None:
    """How near the result of ONNX passes one after the other must be to what the first got: what each may lose,
    together."""
    limits = [step.make().closeness for step in steps]
    if not all(limits):
        return None
    known = [limit for limit in limits if limit is not None]
    names = ", ".join(step.type for step in steps)
    return Closeness(sum(limit.relative for limit in known), f"the limits of {names} together")


def check_tolerance(workflow: Workflow, source: Model | Planned) -> None:
    """Refuse limits, and texts, that say nothing about a model made from an ONNX model; before any work."""
    if source.format != "onnx" or not workflow.verify.enabled:
        return
    if workflow.verify.data:
        raise ColdpressError(
            "--eval_data has no effect on an ONNX source: graphs are compared on inputs that fit them, not on texts",
            hint="leave it out",
        )
    if workflow.verify.tolerance and parse_tolerance(workflow.verify.tolerance).keys() != {RELATIVE}:
        raise ColdpressError(
            f"the tolerance '{workflow.verify.tolerance}' says nothing about an ONNX source: its outputs are compared",
            hint="write relative=0.1, the norm of the difference in units of the outputs' norm",
        )
