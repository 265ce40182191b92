"""What people look at after a run: the facts of a report, put into words once for every place that shows them.

A *report* is one JSON-able mapping (``report.json``). A number that is not in it was not measured: it is shown
as such and never made up. ``terminal`` prints it, ``page`` renders it as HTML and ``card`` as a model card.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coldpress.parts.task import Task, task_of_facts

NOT_MEASURED = "not measured"
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """One line of the comparison with the source, as text. Empty fields say nothing; ``key`` names the number."""

    key: str
    name: str
    model: str
    source: str = ""
    change: str = ""
    limit: str = ""
    meaning: str = ""

    @property
    def measured(self) -> bool:
        return self.model != NOT_MEASURED


@dataclass(frozen=True)
class Verdict:
    """The outcome in words. ``state`` is ``good``, ``bad`` or ``unknown``; anything not known counts as unverified."""

    state: str
    title: str
    meaning: str


_VERDICTS = {
    "verified": Verdict("good", "Verified", "The written model was loaded again and compared with its source."),
    "worse than tolerance": Verdict(
        "bad", "Worse than tolerance", "The model was written, but it is further from its source than allowed."
    ),
    "fine-tuned": Verdict(
        "good", "Fine-tuned", "The model does better than before on rows that it was not trained on."
    ),
}
_UNVERIFIED = Verdict(
    "unknown", "Not verified", "Nobody has compared this model with its source: treat its answers as untested."
)

_SPEED = (
    ("first_token_ms", "First token", "ms"),
    ("prompt_tokens_per_second", "Prompt", "tokens/s"),
    ("decode_tokens_per_second", "Decode", "tokens/s"),
    ("decode_tokens_per_second_p95", "Decode, 95th percentile", "tokens/s"),
)


def task(report: Report) -> Task | None:
    """What the model is for, by its source; None where no task is for that."""
    source = section(report, "source")
    return task_of_facts(str(source.get("format")), str(source.get("architecture") or ""))


def verdict(report: Report) -> Verdict:
    """The report's verdict; only the words the engine writes after a comparison count as a comparison."""
    found = _VERDICTS.get(str(report.get("verdict")), _UNVERIFIED)
    spoke = plain(section(section(report, "quality"), "reference").get("says") or "")
    return replace(found, meaning=f"{found.meaning} {spoke}") if spoke and found is not _UNVERIFIED else found


def reasons(report: Report) -> list[str]:
    """Why the verdict is what it is, one sentence each."""
    given = report.get("reasons") or []
    return [str(given)] if isinstance(given, str) else [str(reason) for reason in given]


def section(report: Report, name: str) -> Mapping[str, Any]:
    """One part of a report; empty when it is missing."""
    found = report.get(name)
    return found if isinstance(found, Mapping) else {}


def entries(report: Report, name: str) -> list[Mapping[str, Any]]:
    """One list of a report; empty when it is missing."""
    found = report.get(name)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []


def number(group: Mapping[str, Any], key: str) -> float | None:
    """A measured finite number, or None."""
    value = group.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def quantity(value: float | None) -> str:
    """A number to three significant digits, whole from 1,000 on."""
    if value is None:
        return NOT_MEASURED
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and value == round(value) else text


def size(bytes_count: float | None) -> str:
    """Bytes in decimal units, as disks and hubs count them."""
    if bytes_count is None:
        return NOT_MEASURED
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(bytes_count) >= factor:
            return f"{quantity(bytes_count / factor)} {unit}"
    return f"{bytes_count:.0f} bytes"


def share(fraction: float | None) -> str:
    """A fraction as a percentage."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.1f} %"


def seconds(duration: float | None) -> str:
    """A duration in the unit one would say it in."""
    if duration is None:
        return NOT_MEASURED
    if duration < 120:
        return f"{quantity(duration)} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plain(value: Any) -> str:
    """A setting as text; control characters, which could steer a terminal, become visible."""
    text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def model_name(report: Report) -> str:
    """How the source calls itself."""
    return plain(section(report, "source").get("name") or "model")


def precision(report: Report) -> str | None:
    """That of the weights, as a pass was asked for it."""
    found = (section(step, "parameters").get("precision") for step in entries(report, "passes"))
    return next((plain(one) for one in found if one), None)


def facts(report: Report) -> list[Fact]:
    """Everything measured about the model next to its source, in reading order: size, quality, speed, memory."""
    quality = [*_perplexity_fact(report), *_quality_facts(report), *_adapter_facts(report)]
    further, speed = list(_further_facts(report)), speed_facts(report)
    if further:
        speed = [fact for fact in speed if fact.key != "speed"]  # what says that there is none
    return [*_size_facts(report), *quality, *further, *speed]


#: metrics whose numbers have facts of their own
_TOLD = ("size", "generation", "memory")
_SHOWN_OF_A_METRIC = 3


def _further_facts(report: Report) -> Iterator[Fact]:
    """What metrics of the workflow gave: the numbers with goals, or the first of each metric."""
    goals = {plain(one.get("number", "")) for one in entries(report, "goals")}
    for label, described in section(report, "directions").items():
        values = section(report, label)
        known = [name for name in described if number(values, name) is not None]
        if label in _TOLD or (label == "perplexity" and number(section(report, "quality"), label) is not None):
            continue
        for name in [one for one in known if f"{label}.{one}" in goals] or known[:_SHOWN_OF_A_METRIC]:
            unit = plain(described[name].get("unit", ""))
            title = called(name, unit)
            yield Fact("measured", title[:1].upper() + title[1:], amount(number(values, name), unit))


def called(name: str, unit: str) -> str:
    """What people call a number: its name without the unit."""
    if name == "model_bytes":
        return "size"
    return name.replace(f"_{unit}", "").replace("_", " ") if unit else name.replace("_", " ")


def amount(value: float | None, unit: str) -> str:
    """A number with its unit."""
    return size(value) if unit == "bytes" else f"{quantity(value)} {unit}".rstrip()


def _size_facts(report: Report) -> list[Fact]:
    source = number(section(report, "source"), "bytes")
    folder = number(section(report, "size"), "total_bytes")
    model = number(section(report, "size"), "model_bytes")
    bits = number(section(report, "size"), "bits_per_weight")
    smaller = f"{quantity(source / model)} times smaller" if source and model and source > model else ""
    return [
        Fact("model_bytes", "Model", size(model), size(source), smaller, meaning="weights and graph on disk"),
        Fact("folder_bytes", "Folder", size(folder), meaning="with tokenizer and configuration"),
        Fact("bits_per_weight", "Bits per weight", quantity(bits), meaning="scales and zero points included"),
    ]


def remark_on_size(report: Report) -> str | None:
    """Why a quantized result is larger than its source; None where it is not."""
    source, model = number(section(report, "source"), "bytes"), number(section(report, "size"), "model_bytes")
    layers = entries(report, "layers")
    if source is None or model is None or model <= source or not layers:
        return None
    coded = sum(number(layer, "bytes") or 0 for layer in layers)
    floats = f"{size(model - coded)} of it are floats" if model - coded > coded / 10 else ""
    roles = {layer.get("role") for layer in layers}
    ends = [name for role, name in (("embedding", "the token embedding"), ("head", "the head")) if role not in roles]
    which = f", {' and '.join(ends)} among them" if floats and report.get("format") == "hf" and len(ends) == 2 else ""
    packed = "its source was packed already" if section(report, "source").get("format") == "gguf" else ""
    why = "; ".join(filter(None, (f"{floats}{which}", packed)))
    return f"Larger than its source: {why}." if why else None


def _perplexity_fact(report: Report) -> Iterator[Fact]:
    """Of models that give next tokens: perplexity is compared as a ratio, and shown as it is."""
    known, quality = task(report), section(report, "quality")
    if known is None or all(one.name != "perplexity_ratio" for one in known.criteria):
        return
    model, source = number(quality, "perplexity"), number(quality, "source_perplexity")
    change = f"{100 * (model / source - 1):+.1f} %" if model is not None and source else ""
    yield Fact("perplexity", "Perplexity", _perplexity(model), _perplexity(source), change, meaning="lower is better")


def _perplexity(value: float | None) -> str:
    return f"{value:.2f}" if value is not None and value < 1000 else quantity(value)


def measured_on(report: Report) -> str:
    """What the quality numbers were measured on, as a phrase; empty when the report does not say."""
    quality = section(report, "quality")
    tokens, words = number(quality, "compared_tokens"), ", ".join(map(plain, section(quality, "texts")))
    counted = "" if tokens is None else f"{tokens:,.0f} tokens"
    return " of ".join(part for part in (counted, words) if part)


def _quality_facts(report: Report) -> list[Fact]:
    quality, tolerance = section(report, "quality"), section(report, "tolerance")
    lines = []
    known = task(report)
    for one in known.criteria if known else ():
        text, bound = share if one.is_share else quantity, "at most" if one.better == "lower" else "at least"
        allowed = number(tolerance, one.name)
        limit = "" if allowed is None else f"{bound} {_round(allowed, one.is_share)}"
        if one.title:
            lines.append(Fact(one.name, one.title, text(number(quality, one.name)), limit=limit, meaning=one.meaning))
    if (change := number(quality, "relative")) is not None:
        limit = f"at most {quantity(number(quality, 'relative_limit'))}"
        meaning = "norm of the difference from the graph before, in units of its norm"
        lines.append(Fact("relative", "Change of an output", quantity(change), limit=limit, meaning=meaning))
    return lines


def _adapter_facts(report: Report) -> list[Fact]:
    """For each adapter, how far the model with it is from the source with it."""
    allowed = number(section(report, "tolerance"), "kl")
    return [
        Fact(
            "adapter",
            f"Adapter {plain(one.get('name', ''))}, KL divergence",
            quantity(number(one, "kl")),
            change=_effect(one),
            limit="" if allowed is None else f"at most {_round(allowed, False)}",
            meaning=f"on a prompt, from the source with the adapter put on by {plain(one.get('reference', 'PEFT'))}",
        )
        for one in entries(report, "adapters")
    ]


def _effect(adapter: Mapping[str, Any]) -> str:
    """What an adapter is worth in the model."""
    without, effect = number(adapter, "kl_without"), number(adapter, "effect")
    words = [
        "" if without is None else f"{quantity(without)} without it",
        "" if effect is None else f"{share(effect)} of its effect",
    ]
    return ", ".join(filter(None, words))


def _circumstances(speed: Mapping[str, Any]) -> str:
    counts = (("prompt_tokens", "prompt tokens"), ("threads", "threads"))
    said = [f"{quantity(number(speed, key))} {unit}" for key, unit in counts if number(speed, key) is not None]
    if (asked := number(speed, "asked_prompt_tokens")) is not None:
        said.insert(1, f"as {quantity(asked)} do not fit into the model's context")
    return ", ".join(said)


def _round(value: float, is_share: bool) -> str:
    """A number that somebody chose: no digits added."""
    return f"{100 * value:g} %" if is_share else f"{value:g}"


def _latency_facts(report: Report) -> Iterator[Fact]:
    """Of a model that gives all its outputs at once: how long a run takes, and of what."""
    taken = section(report, "latency")
    if (median := number(taken, "latency_p50_ms")) is not None:
        shapes = [f"{plain(name)} {plain(shape)}" for name, shape in section(taken, "inputs").items()]
        threads = f"{quantity(number(taken, 'threads'))} threads"
        yield Fact(
            "latency_ms", "Latency", f"{quantity(median)} ms", meaning=f"median; {', '.join([*shapes, threads])}"
        )


def speed_facts(report: Report) -> list[Fact]:
    """What the model does on the machine of the run; one line that says so when nothing was measured."""
    speed, peak = section(report, "speed"), number(section(report, "memory"), "peak_memory_mb")
    lines = [
        Fact(key, name, f"{quantity(number(speed, key))} {unit}")
        for key, name, unit in _SPEED
        if number(speed, key) is not None
    ]
    if lines:
        lines[0] = replace(lines[0], meaning=_circumstances(speed))
    lines += _latency_facts(report)
    memory = NOT_MEASURED if peak is None else size(peak * 1e6)
    return [*(lines or [Fact("speed", "Speed", NOT_MEASURED)]), Fact("peak_mb", "Peak memory", memory)]
