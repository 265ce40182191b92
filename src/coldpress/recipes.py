"""Which passes a verb needs for a precision, a device and an algorithm: the one place that knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.model import Model
from coldpress.workflow import Measure, Step, Workflow

#: algorithms that need more than a weight to round it, so that they work on the Hugging Face folder, before the press
QUANTIZED_FIRST = ("best", "gptq", "awq", "autoround", "hqq", "quarot", "spinquant")
#: options of the calibration that ``auto-opt`` takes, too
DATA = ("data_name", "data_files", "text_template", "use_chat_template", "max_seq_len", "num_samples")
_FOR_BOTH = ("precision", "symmetric", "modules_to_not_convert", "trust_remote_code")


def press_recipe(options: dict[str, Any]) -> tuple[Step, ...]:
    """``auto-opt`` and ``optimize``: a press of whatever the source is; options left out keep the pass's defaults.

    An algorithm that works layer by layer runs before it, and its codes are pressed as they are.
    """
    given = {name: value for name, value in options.items() if value is not None}
    data = {name: given.pop(name) for name in DATA if name in given}
    if given.get("algorithm") not in QUANTIZED_FIRST:
        for name in data:
            raise ColdpressError(
                f"{name} has no effect with --algorithm {given.get('algorithm', 'kquant')}, which needs no data",
                hint=f"use --algorithm {' or '.join(QUANTIZED_FIRST[:2])}",
            )
        return (Step("press", given),)
    first = {"algorithm": given.pop("algorithm"), **data, **{name: given[name] for name in _FOR_BOTH if name in given}}
    if "block_size" in given:
        first["group_size"] = given["block_size"]
    if given.get("precision", "int4") not in ("int4", "int8"):
        raise ColdpressError(
            f"{first['algorithm']} has no effect with precision {given['precision']}, which keeps weights float",
            hint="use --precision int4 or int8",
        )
    return (*quantize_recipe(first), Step("press", given))


def quantize_recipe(options: dict[str, Any]) -> tuple[Step, ...]:
    """``quantize``: a Hugging Face folder stays one; options left out keep the pass's defaults.

    ``quarot`` is a rotation, and then the best of the other algorithms.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("algorithm") == "spinquant":
        raise ColdpressError(
            "spinquant trains its rotations, which coldpress does not do",
            hint="use --algorithm quarot, whose rotation is random",
        )
    if given.get("algorithm") != "quarot":
        return (Step("quantize", given),)
    del given["algorithm"]
    return (
        Step("rotate", {name: given[name] for name in ("trust_remote_code",) if name in given}),
        Step("quantize", given),
    )


_ON_ONNX = ("algorithm", "precision", "symmetric", "lm_head", "embeddings", "modules_to_not_convert", *DATA)


def _on_onnx(step: Step) -> Step:
    """``quantize`` on an ONNX model is another pass, which knows the options that make sense there."""
    given = dict(step.parameters)
    if "group_size" in given:
        given["block_size"] = given.pop("group_size")
    for name in given:
        if name not in (*_ON_ONNX, "block_size"):
            raise ColdpressError(
                f"{name} has no effect on an ONNX model", hint="leave it out, or quantize the Hugging Face model"
            )
    return replace(step, type="quantize_onnx", parameters=given)


def complete(workflow: Workflow, model: Model) -> tuple[Step, ...]:
    """The workflow's passes, after those that bring the model into a format the first of them accepts."""
    steps = workflow.passes
    if model.format == "onnx":
        return tuple(map(_for_onnx, steps))
    if model.format == "gguf" and not (steps and all("gguf" in formats for formats in _accepted(steps[0]))):
        return (Step("unpack_gguf"), *steps)
    return steps


def _for_onnx(step: Step) -> Step:
    if step.any_of:
        return replace(step, any_of=tuple(map(_for_onnx, step.any_of)))
    return _on_onnx(step) if step.type == "quantize" else step


def _accepted(step: Step) -> Iterator[tuple[str, ...]]:
    """The formats that a step accepts, or each of its alternatives."""
    for one in step.any_of:
        yield from _accepted(one)
    if not step.any_of:
        yield parts.find("passes", step.type).accepts


def metrics_for(workflow: Workflow, model: Model) -> tuple[Measure, ...]:
    """What is measured of a finished model: what the workflow names, else its size, and how it generates.

    A model that is not verified is not run at all.
    """
    if workflow.metrics is not None:
        return workflow.metrics
    runs = (model.path / "genai_config.json").exists() and workflow.target.is_here and workflow.verify.enabled
    return tuple(Measure(name) for name in (("size", "generation", "memory") if runs else ("size",)))
