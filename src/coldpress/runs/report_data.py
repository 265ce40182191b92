"""What report.json says of a run: the verdict, the numbers, and how the model came about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models import adapter_folder
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.model import Model
from coldpress.models.provenance import CalibrationRecord, Provenance, QuantizedLayer, Timing, WrittenAdapter
from coldpress.parts import schema
from coldpress.runs.chains import Link
from coldpress.runs.verification import Verdict
from coldpress.target import machine
from coldpress.workflow import Measure, Workflow, labels_of, recipes

_REPORTED_VERSIONS = (
    "coldpress",
    "onnxruntime",
    "onnxruntime-genai",
    "mobius-onnx",
    "onnx-ir",
    "numpy",
    "torch",
    "transformers",
    "peft",
)


@dataclass(frozen=True)
class Finished:
    """A run that is done.

    ``measured``: the numbers of each metric by its label. ``links``: what the passes did, in order.

    ``command``: what repeats the run, if it was a command.
    """

    workflow: Workflow
    source: Model
    model: Model
    verdict: Verdict
    measured: Mapping[str, Mapping[str, Any]]
    links: Sequence[Link]
    command: str | None

    def report(self) -> dict[str, Any]:
        """All that there is to say, as plain data."""
        known, verdict = self.model.provenance, self.verdict
        measures = recipes.metrics_for(self.workflow, self.model, self.source)
        return {
            "coldpress": _version("coldpress"),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "format": self.model.format,
            "verdict": verdict.verdict,
            "reasons": verdict.reasons,
            "source": _source(self.source, known, verdict),
            "target": schema.plain(self.workflow.target),
            "passes": _history(self.links),
            "quality": {name: value for name, value in verdict.numbers.items() if name not in ("answers", "adapters")},
            "tolerance": dict(verdict.limits) or None,
            "answers": [{"prompt": answer["question"], **answer} for answer in verdict.numbers.get("answers", [])],
            **{_SECTIONS.get(name, name): values for name, values in self.measured.items()},
            "directions": {label: _directions(one) for label, one in zip(labels_of(measures), measures, strict=True)},
            **_adapters(known.adapters, verdict),
            "layers": _layers(known.layers),
            "calibration": _calibration(known.calibration),
            **({"tuning": schema.plain(known.tuning)} if known.tuning else {}),
            **({"session": schema.plain(known.session)} if known.session else {}),
            **({"extra": schema.plain(known.extra)} if known.extra else {}),
            "timings": schema.plain([*_timings(self.links), Timing("verify", verdict.seconds)]),
            "seconds": sum(link.result.seconds for link in self.links if not link.result.cached),
            "machine": machine(),
            "versions": {name: found for name in _REPORTED_VERSIONS if (found := _version(name))},
            "command": self.command,
        }


_SECTIONS = {"generation": "speed"}


def _timings(links: Sequence[Link]) -> Iterator[Timing]:
    """The parts of each pass where it tells them, else the whole of it."""
    for link in links:
        if (told := link.model.provenance.timings) != link.before.provenance.timings:
            yield from told
        else:
            pairs = zip(link.chain, link.shares, strict=True)
            yield from (Timing(step.type, share.seconds) for step, share in pairs)


def _layers(layers: Sequence[QuantizedLayer]) -> list[dict[str, Any]]:
    """What is known of each layer."""
    return [{**schema.plain(layer), "exact": layer.is_exact} for layer in layers]


def _calibration(record: CalibrationRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    known = {name: value for name, value in schema.plain(record).items() if value is not None}
    return {**known, "layers": _layers(record.layers)}


def _adapters(made: Sequence[WrittenAdapter], verdict: Verdict) -> dict[str, Any]:
    """What is known of each adapter, if there are any: its file, and how far it is from PEFT's."""
    compared = {one["name"]: one for one in verdict.numbers.get("adapters", [])}
    return {"adapters": [{**schema.plain(one), **compared.get(one.name, {})} for one in made]} if made else {}


def _history(links: Sequence[Link]) -> list[dict[str, Any]]:
    """Each pass with the key of the model it got and of the one it made; passes that were done together name the models
    before and after all of them."""
    history = []
    for link in links:
        when = link.result.ended
        ended = None if when is None else datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="seconds")
        for step, share in zip(link.chain, link.shares, strict=True):
            history.append(
                {
                    "name": step.type,
                    "parameters": step.spelled_out().parameters,
                    "seconds": share.seconds,
                    "cached": link.result.cached,
                    "ended": ended,
                    "parent": link.before.key,
                    "model": link.model.key,
                    "format": link.model.format,
                    "remarks": list(share.remarks),
                }
            )
    return history


def _directions(measure: Measure) -> dict[str, dict[str, str]]:
    """How to read the numbers of a metric: which direction is better, and their unit."""
    values = measure.make().values
    return {name: {"better": value.better, "unit": value.unit} for name, value in values.items()}


def _source(source: Model, known: Provenance, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": source.provenance.source.name or str(source.path),
        "key": source.key,
        "format": source.format,
        "origin": source.provenance.source.origin,
        "architecture": known.source.architecture,
        "parameters": known.source.weights,
        "bytes": _bytes(source, known),
        "notes": [*_remarks(known), *_on_prompts(verdict.numbers)],
    }


def _bytes(source: Model, known: Provenance) -> int:
    """What its weights take; those of a module that a script makes are float32."""
    if source.format == "script":
        return 4 * (known.source.weights or 0)
    return sum(file.stat().st_size for file in _weight_files(source))


def _remarks(known: Provenance) -> list[str]:
    """What one must know of the source to read the report rightly."""
    remarks, lattice = list(known.remarks), known.source.lattice
    if lattice and " bits" in lattice:
        exact = sum(layer.is_exact for layer in known.layers)
        remarks.insert(
            0,
            f"The source was quantized before (GGUF: {lattice}), so its losses say little about the quantizer; "
            f"{exact} of {len(known.layers)} layers hold its values exactly.",
        )
    return remarks


def _on_prompts(numbers: Mapping[str, Any]) -> list[str]:
    """What of texts and questions counts for little, and is said all the same."""
    remarks = []
    if kinds := numbers.get("rare_differences"):
        remarks.append(
            f"onnxruntime-genai takes {', '.join(kinds)} otherwise than transformers: texts with these get other"
            " tokens."
        )
    if count := numbers.get("questions_left_out"):
        remarks.append(f"{count} of the questions of the verification do not fit into the model's context.")
    return remarks


def _weight_files(source: Model) -> list[Path]:
    path = source.path
    if path.is_file():
        return [path]
    if source.format in ("hf", "adapter"):
        return Checkpoint(adapter_folder.base_of(path)).files
    return [
        file
        for file in adapter_folder.base_of(path).iterdir()
        if file.suffix in (".safetensors", ".onnx", ".data", ".gguf")
    ]


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


def source_in_report(folder: Path) -> str:
    """The model that a pressed one was made from, as the report in its folder names it."""
    try:
        name: str = read_report(folder)["source"]["name"]
    except ColdpressError as error:
        hint = f"name the model it was made from: coldpress verify {folder} --source MODEL"
        raise ColdpressError(error.message, hint=hint) from error
    return name
