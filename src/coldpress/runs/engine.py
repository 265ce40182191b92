"""From a workflow to a verified model in its output folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coldpress import parts
from coldpress.errors import WORSE_THAN_TOLERANCE, ColdpressError, NotAtHand
from coldpress.graphs.capture.module import loading_of
from coldpress.jobs.job import Job, Progress, silent
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor
from coldpress.models import adapter_folder
from coldpress.models.azure import is_resource, refuse_remote
from coldpress.models.model import MODULES, Model, content_key
from coldpress.models.planned import Planned
from coldpress.models.sources import find_model, hub_config
from coldpress.packaging import check_package
from coldpress.parts import schema
from coldpress.parts.graph_pass import Share
from coldpress.runs.chains import Chain, Link, chains_of, job_of
from coldpress.runs.log import logged
from coldpress.runs.opening import Opened, Opener, added_up, check_tolerance, renamed_by, with_graphs
from coldpress.runs.output import Beside, Candidate, check_output, is_current, is_written, publish
from coldpress.runs.report_data import Finished, read_report
from coldpress.runs.verification import WORSE, Origin, Verdict, check_request, is_compared, judges, verify
from coldpress.search import (
    JOURNAL,
    Bench,
    Found,
    Prepared,
    check_goals,
    goals_by,
    prepare,
    reached_goals,
    search,
    section,
)
from coldpress.target import Target
from coldpress.workflow import Measure, Running, Step, Workflow, labels_of, recipes


@dataclass(frozen=True)
class Console:
    """How a run speaks: ``say`` a line, ``progress(what, done, total)``; silent by default."""

    say: Callable[[str], None] = lambda line: None
    progress: Progress = silent


@dataclass(frozen=True)
class Report:
    """The outcome of a run. ``data`` is what report.json holds; ``model`` the finished model."""

    data: dict[str, Any]
    model: Model
    up_to_date: bool = False

    def __str__(self) -> str:
        """The table that the command line shows."""
        from coldpress.report.terminal import as_text, summary

        return as_text(summary(self.data))

    @property
    def exit_code(self) -> int:
        """0 when a model was written (and verified, unless that was turned off), 3 when it is worse than was
        allowed."""
        misses = any(not goal["met"] for goal in self.data.get("goals", []))
        return WORSE_THAN_TOLERANCE if self.data["verdict"] == WORSE or misses else 0


GoalsOf = Callable[["_Run", Model, dict[str, dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True)
class _Run:
    """``begins``: passes that never share the load of those before, as points of a search take it from the store."""

    workflow: Workflow
    executor: Executor
    console: Console
    command: str | None
    begins: Callable[[Step], bool] = lambda step: False


@dataclass(frozen=True)
class _Passed:
    """What passes made of a source, one after the other.

    ``model``: of the last one. ``origin``: what it is compared with, the source in its first Hugging Face form, with
    its adapters if any. ``links``: what was done, in order. ``opened``: what was found by opening graphs on the way.
    """

    source: Model
    model: Model
    origin: Origin
    links: tuple[Link, ...] = ()
    opened: tuple[Opened, ...] = ()


def run(
    workflow: Workflow,
    *,
    store: Store | None = None,
    console: Console = Console(),
    overwrite: bool = False,
    command: str | None = None,
) -> Report:
    """Do a workflow: passes, verification, measurements, and the report, into the workflow's output folder.

    Raises ColdpressError before any work when the request is wrong. ``overwrite`` allows to replace files in an output
    folder that is not empty; files that no run wrote stay. ``command`` is what the report names for repeating it.
    """
    system = workflow.system.make()
    for place in (system, *(one.system.make() for one in workflow.metrics or () if one.system)):
        parts.check_needs(type(place))
        place.check()
    store = store or workflow.run.open_store()
    if store.remote is not None:
        store.remote.check()
    refuse_remote(schema.plain([workflow.data, workflow.passes, workflow.metrics]))
    with logged(workflow, console.say) as say:
        executor = Executor(system, store, console.progress)
        return _run(_Run(workflow, executor, replace(console, say=say), command), overwrite)


def _run(request: _Run, overwrite: bool) -> Report:
    workflow, console = request.workflow, request.console
    with _started_early(request):
        source = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=console.say)
        return _checked(request, source, recipes.complete(workflow, source), overwrite)


def _checked(request: _Run, source: Model, steps: Sequence[Step], overwrite: bool) -> Report:
    """Check a request, and do what is not done yet."""
    workflow, console = request.workflow, request.console
    prepared = _prepared(workflow, steps, source)
    if prepared is not None:
        request = replace(request, begins=prepared.space.is_open_step)
    output = Path(workflow.output) if workflow.output else None
    work = _keys(request, source, steps) if prepared is None else [_search_key(request, prepared, source)]
    identity = _identity(workflow, source, work)
    if output is not None:
        known = is_current(output, identity)
        if known is not None and not workflow.run.clean_cache:
            console.say(f"{output} is up to date")
            return Report(known, Model(output, known["format"], content_key(output)), up_to_date=True)
        check_output(output, overwrite or known is not None, request.executor.store.root)
    made = (
        _finished(request, source, steps, _goals) if prepared is None else _searched(request, prepared, source, work[0])
    )
    if output is not None:
        best = Candidate(made.model, {**made.report, "identity": identity}, workflow.resolved().to_yaml())
        publish(best, output, Beside(made.candidates, made.texts, workflow.packaging, workflow.artifacts))
    return Report(made.report, made.model)


def _started_early(request: _Run) -> AbstractContextManager[None]:
    """What the first pass needs, started while the model is read and the request is checked.

    Nothing where the model is not at hand yet, or where there is a result already that may be up to date.
    """
    workflow = request.workflow
    model, output = Path(workflow.model), workflow.output
    if model.exists() and not (output and is_written(Path(output))):
        with suppress(ColdpressError):  # what is wrong is said by the checks
            steps = recipes.complete(workflow, Model(model, recipes.expected_format(workflow), ""))
            if steps and not steps[0].is_open:
                return request.executor.system.started_early(steps[0].type)
    return nullcontext()


def _identity(workflow: Workflow, source: Model, work: Sequence[str]) -> dict[str, Any]:
    """All that decides a result.

    ``work``: keys of what is to be done, which stand for parts and files as they are today.
    """
    return {
        "workflow": schema.plain(replace(workflow, output=None, run=Running())),
        "source": source.key,
        "work": list(work),
        "verified_on": [content_key(Path(file)) for file in workflow.verify.data],
        "verified_by": judges() if workflow.verify.enabled else {},
    }


def dry_run(
    workflow: Workflow, say: Callable[[str], None] = lambda line: None, needed: Container[str] = ()
) -> Workflow:
    """The workflow with all its parameters, after every check that needs no work; weights are not fetched for it.

    ``say`` is told what could not be checked, as it is not on this machine, unless it is among the ``needed``: model,
    data.
    """

    told: set[str] = set()

    @contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except NotAtHand as error:
            if error.message not in told:
                say(f"not checked: {error.message}")
            told.add(error.message)

    source: Model | Planned = Planned(recipes.expected_format(workflow))
    with nullcontext() if "model" in needed else attempt():
        if not is_resource(workflow.model) and hub_config(workflow.model) is None:
            source = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=say)
    _prepared(workflow, recipes.complete(workflow, source), source, nullcontext if "data" in needed else attempt)
    return workflow.resolved()


#: what surrounds a check that may find something missing
_Attempt = Callable[[], AbstractContextManager[None]]


def _prepared(
    workflow: Workflow, steps: Sequence[Step], source: Model | Planned, attempt: _Attempt = nullcontext
) -> Prepared | None:
    """Check a request whole, before any work; what a search needs to know, where something is left open."""
    check_request(workflow.verify, source)
    check_tolerance(workflow, source)
    for package in workflow.packaging:
        check_package(package)
    for measure in workflow.metrics or ():
        with attempt():
            measure.check(source)
    if workflow.search is not None or any(step.is_open for step in steps):
        with attempt():
            return prepare(workflow, steps, source)
        return None
    check_goals(workflow, source, {_check_passes(steps, source, workflow.target, attempt)})
    return None


def _check_passes(
    steps: Sequence[Step], source: Model | Planned, target: Target, attempt: _Attempt = nullcontext
) -> str:
    """The format that the last pass gives, if each can do its work."""
    current = source
    for step in steps:
        before, current = current, Planned(parts.find("passes", step.type).produces)
        with attempt():
            current = step.check(before, target)
    return current.format


@dataclass(frozen=True)
class _Made:
    """What a run made: a model, its report, and what else belongs into the output folder."""

    model: Model
    report: dict[str, Any]
    candidates: dict[str, Candidate] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def _finished(request: _Run, source: Model, steps: Sequence[Step], goals_of: GoalsOf) -> _Made:
    """The result of passes that leave nothing open, verified and measured; ``goals_of`` says which goals it meets."""
    passed = _pass_by_pass(request, source, steps)
    verdict = _verdict(request, passed)
    request.console.say(str(verdict))
    measured = _measure(request, source, passed.model)
    finished = Finished(request.workflow, source, passed.model, verdict, measured, passed.links, request.command)
    goals = goals_of(request, source, measured)
    return _Made(passed.model, finished.report() | ({"goals": goals} if goals else {}))


def _goals(request: _Run, source: Model, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return reached_goals(request.workflow, measured, lambda measure: _numbers(request, source, measure))


def _searched(request: _Run, prepared: Prepared, source: Model, key: str) -> _Made:
    """The best result of a search, verified and measured; others that are kept beside it."""
    workflow = request.workflow
    quiet = replace(request, console=replace(request.console, say=lambda line: None))
    if prepared.workers > 1:  # steps of points side by side would take turns in one bar
        quiet = replace(quiet, executor=replace(request.executor, progress=silent))

    def passes(steps: Sequence[Step]) -> Model:
        _check_passes(steps, source, workflow.target)
        return _pass_by_pass(quiet, source, steps).model

    def measure_anew(model: Model, measure: Measure) -> dict[str, Any]:
        job = _metric_job(request, model, measure)
        return dict(measure.executor(request.executor).measured_anew(job).numbers)

    bench = Bench(passes, lambda model, measure: _numbers(quiet, model, measure), measure_anew)
    with request.executor.store.kept(f"search-{key}") as folder:
        found = search(prepared, source, bench, folder, request.console.say)
        journal = (folder / JOURNAL).read_text(encoding="utf-8")
    best = _best(request, source, found)
    chosen = next(iter(best))
    kept = {number: f"candidates/{number}" for number in list(best)[1:]}
    about = section(found, chosen, kept)
    request.console.say(about["why"])
    alone = {number: replace(workflow, passes=found.steps(number), search=None).to_yaml() for number in best}
    candidates = {name: Candidate(best[n].model, best[n].report, alone[n]) for n, name in kept.items()}
    report = {**best[chosen].report, "search": about}
    return _Made(best[chosen].model, report, candidates, {"best.yaml": alone[chosen], JOURNAL: journal})


def _best(request: _Run, source: Model, found: Found) -> dict[int, _Made]:
    """The results to keep by the number of their point, the chosen one first.

    That is the best one that is not worse than its tolerance, among the first few; if all of them are, the first.
    """
    keep = found.request.search.keep
    finished: dict[int, _Made] = {}
    good: list[int] = []
    for number in found.ranked(keep + _PASSED_OVER):
        if len(good) == keep:
            break
        goals = goals_by(*found.best_known(number))
        finished[number] = _finished(request, source, found.steps(number), lambda *known, goals=goals: goals)
        if finished[number].report["verdict"] != WORSE:
            good.append(number)
        else:
            request.console.say(f"point {number} is passed over, as it is worse than its tolerance")
    order = [*good, *(number for number in finished if number not in good)][:keep]
    return {number: finished[number] for number in order}


#: how many points that are worse than their tolerance are passed over for the next best
_PASSED_OVER = 5


def _search_key(request: _Run, prepared: Prepared, source: Model) -> str:
    """What a search goes on under: the same passes, values, metrics, data and versions, and so the same trials."""
    keys = set()
    for point in prepared.space.each_value():
        jobs, model = _jobs(request, source, prepared.space.steps_at(point))
        keys |= {job.key for job in jobs}
        keys |= {_metric_job(request, model, measure).key for measure in prepared.measures}
    facts = json.dumps([prepared.facts, sorted(keys)], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _pass_by_pass(request: _Run, source: Model, steps: Sequence[Step]) -> _Passed:
    passed = _Passed(source, source, _origin(Origin(source), source))
    chains = chains_of(steps, request.begins)
    for chain in chains:
        passed = _next(request, passed, chain, is_last=chain is chains[-1])
    return passed


def _next(request: _Run, passed: _Passed, chain: Chain, is_last: bool) -> _Passed:
    """What there is after one more pass, or several that are done together."""
    before, workflow = passed.model, request.workflow
    if passed.links:  # what was checked before any work was what the pass before had foretold
        chain[0].check(before, workflow.target)
    link = Link(chain, before, request.executor.result(job_of(chain, before, workflow)))
    for step, share in zip(chain, link.shares, strict=True):
        request.console.say(f"{step.type}: {_what_came(link, share)}")
    origin, opened = _origin(passed.origin, link.model), passed.opened
    if before.format in MODULES:
        origin = replace(origin, loading=loading_of(chain[0].make()))
    if link.model.format == "onnx" and not (is_last and _is_run_later(workflow, origin, link.model)):
        compare = workflow.verify.enabled and not is_compared(origin, link.model)
        opened = (*opened, *_opener(request).found(link, compare))
    return _Passed(passed.source, link.model, origin, (*passed.links, link), opened)


def _opener(request: _Run) -> Opener:
    return Opener(request.workflow, request.executor)


def _is_run_later(workflow: Workflow, origin: Origin, model: Model) -> bool:
    """Whether verification opens the model anyway."""
    return workflow.verify.enabled and workflow.target.is_here and is_compared(origin, model)


def _verdict(request: _Run, passed: _Passed) -> Verdict:
    """The verdict on a result, and the pass that broke it, if one did."""
    workflow, origin = request.workflow, passed.origin
    verdict = verify(passed.model, origin, workflow, request.executor)
    found = passed.opened
    if verdict.verdict == WORSE and len(passed.links) > 1:
        between = [link for link in passed.links if link.before.format == link.model.format == "onnx"]
        found = tuple(one for link in between for one in _opener(request).found(link, compare=True))
    return with_graphs(verdict, found, is_whole=workflow.verify.enabled and origin.source.format == "onnx")


def _what_came(link: Link, share: Share) -> str:
    """How long a pass took; or why the model is as it was."""
    if link.model.path == link.before.path:
        return link.model.provenance.remarks[-1]
    return "found in the cache" if link.result.cached else f"{share.seconds:.1f} s"


def _origin(known: Origin, model: Model) -> Origin:
    """What a result is compared with, after ``model`` has been on the way to it: the first Hugging Face model, and its
    adapters.

    Where these have been merged into it, that is another model, and the first again, which is compared with them.
    """
    if model.format == "adapter":
        base = adapter_folder.read(model.path).base
        is_known = known.source.format == "hf"
        return Origin(known.source if is_known else Model(base, "hf", content_key(base), model.provenance), model)
    if model.format == "hf" and (known.source.format != "hf" or known.attached is not None):
        return Origin(model, merged=known.attached)
    return known


def _keys(request: _Run, source: Model, steps: Sequence[Step]) -> list[str]:
    """The keys of passes and of the metrics that were asked for."""
    jobs, model = _jobs(request, source, steps)
    jobs += [_metric_job(request, model, one) for one in request.workflow.metrics or ()]
    return [job.key for job in jobs]


def _jobs(request: _Run, source: Model, steps: Sequence[Step]) -> tuple[list[Job], Model]:
    """The jobs of passes, one after the other, without doing any; and the model they end with, as far as it is
    known."""
    jobs, model = [], source
    for chain in chains_of(steps, request.begins):
        jobs.append(request.executor.placed(job_of(chain, model, request.workflow)))
        model = Model(model.path, jobs[-1].part_class.produces, jobs[-1].key, model.provenance)
    return jobs, model


def _measure(request: _Run, source: Model, model: Model) -> dict[str, dict[str, Any]]:
    measures = recipes.metrics_for(request.workflow, model, source)
    return {label: _numbers(request, model, one) for label, one in zip(labels_of(measures), measures, strict=True)}


def _numbers(request: _Run, model: Model, measure: Measure) -> dict[str, Any]:
    job = _metric_job(request, model, measure)
    return dict(measure.executor(request.executor).result(job).numbers)


def _metric_job(request: _Run, model: Model, measure: Measure) -> Job:
    job = Job("metric", measure.type, schema.plain(measure.make()), model, request.workflow.target)
    return measure.executor(request.executor).placed(job)


def readable(model: Model, executor: Executor, target: Target, trust_remote_code: bool = False) -> Model:
    """A model as metrics read it: a GGUF file unpacked, the text model of a multimodal folder; any other as it is."""
    workflow = Workflow("", target=target, trust_remote_code=trust_remote_code)
    for step in recipes.complete(workflow, model):
        made = executor.result(Job("pass", step.type, schema.plain(step.make()), model, target)).model
        assert made is not None
        model = made
    return model


def verify_pressed(model: str, workflow: Workflow, store: Store, console: Console = Console()) -> Verdict:
    """Compare two models, whatever form they have: one that was made from the model of ``workflow``, with that."""
    executor = Executor(workflow.system.make(), store, console.progress)
    pressed = readable(find_model(model, say=console.say), executor, workflow.target)
    original = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=console.say)
    done = _passes_in(Path(model))
    strictest = "fp32"
    precision = next((one["parameters"]["precision"] for one in done if "precision" in one["parameters"]), strictest)
    steps = recipes.complete(workflow, original)
    if original.format in MODULES:
        steps = tuple(Step(one["name"], one["parameters"]) for one in done[:1]) or steps
    if original.format not in ("adapter", *MODULES):
        attached = (one for one in done if one["name"] == "attach_adapters")
        steps = (*steps, *(Step(one["name"], one["parameters"]) for one in attached))
    origin = _pass_by_pass(_Run(workflow, executor, console, None), original, steps).origin
    known = replace(pressed.provenance, precision=precision)
    verdict = verify(replace(pressed, provenance=known), origin, workflow, executor)
    if original.format != "onnx" or pressed.format != "onnx" or pressed.key == original.key:
        return verdict
    chain = [Step(one["name"], one["parameters"]) for one in done]
    limit = added_up(chain)
    if limit is None:
        return verdict
    found = Opener(workflow, executor).compared("the passes", original, pressed, limit, renamed_by(chain))
    return with_graphs(verdict, [found], is_whole=True)


def _passes_in(folder: Path) -> list[dict[str, Any]]:
    """The passes that a folder's report names; none where it has no report."""
    try:
        passes: list[dict[str, Any]] = read_report(folder)["passes"]
    except ColdpressError:
        return []
    return passes
