"""From a workflow to a verified model in its output folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coldpress import recipes, schema
from coldpress.errors import WORSE_THAN_TOLERANCE, ColdpressError
from coldpress.job import Job, Progress, Result
from coldpress.model import Model, content_key
from coldpress.output import Candidate, check_output, is_current, publish
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
from coldpress.search.goals import labels_of
from coldpress.sources import find_model
from coldpress.store import Store
from coldpress.systems.local import Local
from coldpress.target import Target, machine
from coldpress.verify import WORSE, Verdict, check_request, verify
from coldpress.workflow import Measure, Step, Workflow

_REPORTED_VERSIONS = (
    "coldpress",
    "onnxruntime",
    "onnxruntime-genai",
    "mobius-onnx",
    "onnx-ir",
    "numpy",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Console:
    """How a run speaks: ``say`` a line, ``progress(what, done, total)``; silent by default."""

    say: Callable[[str], None] = lambda line: None
    progress: Progress = lambda what, done, total: None


@dataclass(frozen=True)
class Report:
    """The outcome of a run. ``data`` is what report.json holds; ``model`` the finished model."""

    data: dict[str, Any]
    model: Model
    up_to_date: bool = False

    @property
    def exit_code(self) -> int:
        """0 when a model was written (and verified, unless that was turned off), 3 when it is worse than was allowed."""
        misses = any(not goal["met"] for goal in self.data.get("goals", []))
        return WORSE_THAN_TOLERANCE if self.data["verdict"] == WORSE or misses else 0


GoalsOf = Callable[["_Run", Model, dict[str, dict[str, Any]]], list[dict[str, Any]]]


@dataclass
class _Run:
    workflow: Workflow
    store: Store
    console: Console
    command: str | None
    results: list[tuple[Step, Result]] = field(default_factory=list)


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
    request = _Run(workflow, store or Store(), console, command)
    source = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=console.say)
    steps = recipes.complete(workflow, source)
    check_request(workflow.verify)
    prepared = prepare(workflow, steps, source) if _is_search(workflow, steps) else None
    if prepared is None:
        _check(steps, source, workflow)
    output = Path(workflow.output) if workflow.output else None
    identity = {
        "workflow": schema.plain(replace(workflow, output=None)),
        "source": source.key,
        "steps": schema.plain(steps),
    }
    if output is not None:
        known = is_current(output, identity)
        if known is not None:
            console.say(f"{output} is up to date")
            return Report(known, Model(output, known["format"], content_key(output), {}), up_to_date=True)
        check_output(output, overwrite)
    made = _finished(request, source, steps, _goals) if prepared is None else _searched(request, prepared)
    if output is not None:
        report = {**made.report, "identity": identity}
        publish(made.model, output, report, _resolved(workflow).to_yaml(), made.candidates, made.extra)
    return Report(made.report, made.model)


def _is_search(workflow: Workflow, steps: Sequence[Step]) -> bool:
    return workflow.search is not None or any(step.is_open for step in steps)


def _check(steps: Sequence[Step], source: Model, workflow: Workflow) -> None:
    """Every pass and metric can do its work, and each takes what the one before it gives; said before any work."""
    check_goals(workflow, source, {_check_passes(steps, source, workflow.target)})


def _check_passes(steps: Sequence[Step], source: Model, target: Target) -> str:
    """The format that the last pass gives, if each can do its work."""
    current = source
    for step in steps:
        current = step.check(current, target)
    return current.format


@dataclass(frozen=True)
class _Made:
    """What a run made: a model, its report, and what else belongs into the output folder."""

    model: Model
    report: dict[str, Any]
    candidates: dict[str, Candidate] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)


def _finished(request: _Run, source: Model, steps: Sequence[Step], goals_of: GoalsOf) -> _Made:
    """The result of passes that leave nothing open, verified and measured; ``goals_of`` says which goals it meets."""
    request = replace(request, results=[])
    workflow = request.workflow
    original, pressed = _pass_by_pass(request, source, steps)
    verdict = verify(pressed, original, workflow, request.store, request.console.progress)
    request.console.say(_verdict_line(verdict))
    measured = _measure(request, pressed)
    report = _report(request, source, pressed, verdict, measured)
    goals = goals_of(request, source, measured)
    return _Made(pressed, {**report, "goals": goals} if goals else report)


def _goals(request: _Run, source: Model, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return reached_goals(request.workflow, measured, lambda measure: _numbers(request, source, measure))


def _searched(request: _Run, prepared: Prepared) -> _Made:
    """The best result of a search, verified and measured; others that are kept beside it."""
    workflow, source = request.workflow, prepared.source
    quiet = replace(request, console=replace(request.console, say=lambda line: None))

    def passes(steps: Sequence[Step]) -> Model:
        _check_passes(steps, source, workflow.target)
        return _pass_by_pass(replace(quiet, results=[]), source, steps)[1]

    def measure_anew(model: Model, measure: Measure) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="coldpress-") as place:  # a store of its own: never a known time
            return _numbers(replace(quiet, store=Store(place)), model, measure)

    bench = Bench(passes, lambda model, measure: _numbers(quiet, model, measure), measure_anew)
    with request.store.kept(f"search-{_search_key(request, prepared)}") as folder:
        found = search(prepared, bench, folder, request.console.say)
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


def _search_key(request: _Run, prepared: Prepared) -> str:
    """What a search goes on under: the same passes, values, metrics, data and versions, and so the same trials."""
    keys = set()
    for point in prepared.space.each_value():
        model = prepared.source
        for step in prepared.space.steps_at(point):
            job = _job(request, step, model)
            keys.add(job.key)
            model = Model(model.path, job.part_class.produces, job.key, model.notes)
        keys |= {_metric_job(request, model, measure).key for measure in prepared.measures}
    facts = json.dumps([prepared.facts, sorted(keys)], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _pass_by_pass(request: _Run, source: Model, steps: Sequence[Step]) -> tuple[Model, Model]:
    """The source in its first Hugging Face form (what the result is compared with) and the result."""
    original = model = source
    for step in steps:
        job = _job(request, step, model)
        [(_, result)] = Local().map([job], request.store, request.console.progress)
        assert result.model is not None
        request.results.append((Step(step.type, dict(job.parameters)), result))
        request.console.say(f"{step.type}: {'found in the cache' if result.cached else f'{result.seconds:.1f} s'}")
        model = result.model
        original = original if original.format == "hf" else model
    return original, model


def _job(request: _Run, step: Step, model: Model) -> Job:
    workflow = request.workflow
    return Job("pass", step.type, schema.plain(step.make()), model, workflow.target, seed=workflow.seed)


def _measure(request: _Run, model: Model) -> dict[str, dict[str, Any]]:
    measures = recipes.metrics_for(request.workflow, model)
    return {label: _numbers(request, model, one) for label, one in zip(labels_of(measures), measures, strict=True)}


def _numbers(request: _Run, model: Model, measure: Measure) -> dict[str, Any]:
    job = _metric_job(request, model, measure)
    [(_, result)] = Local().map([job], request.store, request.console.progress)
    return dict(result.numbers)


def _metric_job(request: _Run, model: Model, measure: Measure) -> Job:
    return Job("metric", measure.type, schema.plain(measure.make()), model, request.workflow.target)


def _resolved(workflow: Workflow) -> Workflow:
    """The workflow with every parameter of its passes spelled out; what is left open stays so."""
    spelled_out = (step if step.is_open else Step(step.type, schema.plain(step.make())) for step in workflow.passes)
    return replace(workflow, passes=tuple(spelled_out))


def _verdict_line(verdict: Verdict) -> str:
    return "; ".join([verdict.verdict, *verdict.reasons])


def _report(
    request: _Run, source: Model, model: Model, verdict: Verdict, measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    notes, numbers = model.notes, dict(verdict.numbers)
    seconds = sum(result.seconds for _, result in request.results if not result.cached)
    return {
        "coldpress": _version("coldpress"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "format": model.format,
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "source": _source(source, notes),
        "target": schema.plain(request.workflow.target),
        "passes": [
            {"name": step.type, "parameters": step.parameters, "seconds": result.seconds, "cached": result.cached}
            for step, result in request.results
        ],
        "quality": {name: value for name, value in numbers.items() if name != "answers"},
        "tolerance": schema.plain(verdict.tolerance) if verdict.tolerance else None,
        "answers": [{"prompt": answer["question"], **answer} for answer in numbers.get("answers", [])],
        **{_SECTIONS.get(name, name): values for name, values in measured.items()},
        "layers": notes.get("layers", []),
        "calibration": notes.get("calibration"),
        "timings": [*notes.get("timings", []), {"step": "verify", "seconds": verdict.seconds}],
        "seconds": seconds,
        "machine": machine(),
        "versions": {name: found for name in _REPORTED_VERSIONS if (found := _version(name))},
        "command": request.command,
    }


_SECTIONS = {"generation": "speed"}


def _source(source: Model, notes: Any) -> dict[str, Any]:
    return {
        "name": source.notes.get("source", str(source.path)),
        "origin": source.notes.get("origin"),
        "architecture": notes.get("architecture"),
        "parameters": notes.get("source_weights"),
        "bytes": sum(file.stat().st_size for file in _weight_files(source.path)),
        "notes": _remarks(notes),
    }


def _remarks(notes: Any) -> list[str]:
    """What one must know of the source to read the report rightly."""
    remarks = list(notes.get("warnings", []))
    if " bits" in notes.get("lattice", ""):
        exact = sum(layer["exact"] for layer in notes.get("layers", []))
        remarks.insert(
            0,
            f"The source was quantized before (GGUF: {notes['lattice']}), so its losses say little about the quantizer; "
            f"{exact} of {len(notes.get('layers', []))} layers hold its values exactly.",
        )
    return remarks


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.iterdir() if file.suffix in (".safetensors", ".onnx", ".data", ".gguf")]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_report(folder: Path) -> dict[str, Any]:
    """The report in an output folder."""
    file = folder / "report.json"
    if not file.exists():
        raise ColdpressError(f"{folder} has no report.json", hint="it is written by auto-opt, optimize and run")
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def verify_pressed(model: str, workflow: Workflow, store: Store, console: Console = Console()) -> Verdict:
    """Compare a model in a folder with the model of ``workflow``, from which it was made, whatever form that has."""
    pressed = find_model(model, say=console.say)
    original = find_model(workflow.model, trust_remote_code=workflow.trust_remote_code, say=console.say)
    notes = {"precision": _precision_in(pressed.path), **pressed.notes}
    steps = recipes.complete(workflow, original)
    original, _ = _pass_by_pass(_Run(workflow, store, console, None), original, steps)
    return verify(replace(pressed, notes=notes), original, workflow, store, console.progress)


def _precision_in(folder: Path) -> str:
    """The precision that a folder's report names; the strictest if there is none."""
    try:
        passes = read_report(folder)["passes"]
    except ColdpressError:
        return "fp32"
    return next((step["parameters"]["precision"] for step in passes if "precision" in step["parameters"]), "fp32")
