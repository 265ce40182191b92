"""``capture-onnx-graph``: from a PyTorch model to its ONNX graph, verified, and nothing else done to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import (
    Choice,
    Json,
    adapter_option,
    common_options,
    given,
    model_option,
    output_option,
    script_options,
    target_options,
    verify_options,
)
from coldpress.errors import ColdpressError
from coldpress.passes.press import PRECISIONS

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "auto": "fp32"}
_EXPORTERS = {"use_dynamo_exporter": "torch_export", "use_model_builder": "mobius", "use_mobius_builder": "mobius"}
#: flags of Olive's command that have no effect here, and what to do instead
_REFUSED = {
    "exclude_embeds": "the graph takes token ids, as onnxruntime-genai gives them; leave it out",
    "exclude_lm_head": "for hidden states name a model of feature extraction; leave it out",
    "enable_cuda_graph": "set enable_cuda_graph under provider_options in genai_config.json",
    "extra_mb_options": "use the flags of this command; `coldpress show press` lists what there is",
}


def _refused(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags that are known, and answered with what to do instead."""

    def answer(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            hint = _REFUSED[str(parameter.name)]
            raise ColdpressError(f"--{parameter.name} has no counterpart here", hint=hint)

    for name, instead in _REFUSED.items():
        is_flag = name != "extra_mb_options"
        option = click.option(
            f"--{name}",
            is_flag=is_flag,
            default=None,
            hidden=True,
            expose_value=False,
            callback=answer,
            help=f"Olive's; refused: {instead}.",
        )
        command = option(command)
    return command


def _sizes(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, int]:
    """``batch=1,sequence=128`` as a mapping."""
    pairs = [part.partition("=") for part in (value or "").split(",") if part.strip()]
    for name, _, size in pairs:
        if not name.strip() or not size.strip().isdigit():
            raise ColdpressError(
                f"--fixed_param_dict: '{value}' is no list of sizes",
                hint="write --fixed_param_dict batch=1,sequence=128",
            )
    return {name.strip(): int(size) for name, _, size in pairs}


def _one_exporter(chosen: dict[str, bool]) -> str | None:
    flags = [name for name, is_set in chosen.items() if is_set]
    if len(flags) > 1:
        raise ColdpressError(f"--{flags[0]} and --{flags[1]} are two exporters", hint="leave one of them out")
    return _EXPORTERS[flags[0]] if flags else None


@click.command("capture-onnx-graph", help=VERBS["capture-onnx-graph"])
@model_option
@script_options
@adapter_option
@output_option("models/captured")
@click.option("--io_config", type=Json(), help="Inputs, outputs and dynamic_axes of a module, instead of its script's.")
@click.option("-t", "--task", help="What the model is for; it is found in the model, and another is refused.")
@click.option("--torch_dtype", type=Choice(tuple(_DTYPES)), help="What the graph computes in. [default: float32]")
@click.option("--precision", type=Choice(PRECISIONS), help="What weights are stored as; says what --torch_dtype does.")
@click.option("--int4_block_size", type=Choice((16, 32, 64, 128, 256)), help="Weights that share a scale, with int4.")
@click.option("--int4_accuracy_level", type=Choice((0, 1, 2, 3, 4)), help="What int4 products are computed in.")
@click.option("--fixed_param_dict", "fixed", callback=_sizes, help="Sizes of open axes: batch=1,sequence=128.")
@click.option("--target_opset", type=int, help="Version of ONNX's operators. [default: the oldest that has all]")
@click.option("--use_dynamo_exporter", is_flag=True, help="Let torch.export write the graph.")
@click.option("--use_model_builder", is_flag=True, help="Let mobius write it, fused for the runtime.")
@click.option("--use_mobius_builder", is_flag=True, help="The same.")
@click.option("--use_ort_genai/--no_use_ort_genai", default=None, help="Write genai_config.json. [default: true]")
@click.option("--past_key_value_name", help="Name of the caches; they are called past_key_values.")
@click.option("--conversion_device", help="Where the graph is built: on the cpu.")
@_refused
@target_options
@verify_options
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--dry_run", is_flag=True, help="Check everything, print the resolved workflow and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def command(session: Any, overwrite: bool, dry_run: bool, as_json: bool, **arguments: Any) -> int:
    from coldpress.api import capture_workflow
    from coldpress.cli.finish import run_and_show, show_resolved

    _require_usual(arguments)
    arguments["exporter"] = _one_exporter({name: arguments.pop(name) for name in _EXPORTERS})
    dtype, precision = arguments.pop("torch_dtype"), arguments.pop("precision")
    if dtype is not None and precision is not None:
        raise ColdpressError("--torch_dtype and --precision say the same", hint="leave one of them out")
    arguments["precision"] = _DTYPES[dtype] if dtype is not None else precision
    workflow = capture_workflow(**given(arguments))
    if dry_run:
        return show_resolved(session, workflow, as_json, ("model",))
    return run_and_show(session, workflow, overwrite, as_json)


def _require_usual(arguments: dict[str, Any]) -> None:
    """Refuse other values than those that hold anyway."""
    name, device = arguments.pop("past_key_value_name"), arguments.pop("conversion_device")
    if name not in (None, "past_key_values"):
        raise ColdpressError(
            f"--past_key_value_name: caches are not called '{name}'",
            hint="onnxruntime-genai reads their names in genai_config.json: past_key_values.0.key and so on",
        )
    if device not in (None, "cpu"):
        raise ColdpressError(
            f"--conversion_device: graphs are not built on '{device}'",
            hint="leave it out; --device says where the graph shall run",
        )
