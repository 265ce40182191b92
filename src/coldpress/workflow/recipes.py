"""Which passes a verb needs for a precision, a device and an algorithm: the one place that knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.models.model import MODULES, Model
from coldpress.models.planned import Planned
from coldpress.parts.task import task_of_facts
from coldpress.target import Target
from coldpress.workflow import Measure, Step, Workflow
from coldpress.workflow.calibration_data import DATA, with_data

#: algorithms that need more than a weight to round it, so that they work on the Hugging Face folder, before the press
QUANTIZED_FIRST = ("best", "gptq", "awq", "autoround", "hqq", "quarot", "spinquant")
#: those of them that need data
CALIBRATED = ("best", "gptq", "awq", "autoround", "quarot", "spinquant")
#: what ``auto-opt`` does to 4-bit weights where nobody says how, of the models that can be calibrated
DEFAULT = "gptq"
#: those of them that are a rotation, and then the best of the others
_ROTATED = ("quarot", "spinquant")
_BY_WEIGHTS, _BUDGETS = ("rtn", "hqq"), {"target_bits", "max_size"}
_FOR_BOTH = ("precision", "symmetric", "modules_to_not_convert", "trust_remote_code")
#: algorithms that leave the inputs of layers as they are, so that an adapter of the float model fits the result still
_KEEPS_INPUTS = ("rtn", "kquant", "hqq", "gptq")
#: what a learned rotation takes of the options of the pass that follows
_LEARNED_FOR = ("group_size", "symmetric", "data", "max_memory")


#: options that say how a script loads a module
LOADING = ("model_script", "script_dir", "io_config")


def source_of(
    model: str | PurePath | None,
    model_script: str | PurePath | None = None,
    script_dir: str | PurePath | None = None,
    io_config: Mapping[str, Any] | None = None,
) -> tuple[str, tuple[Step, ...]]:
    """The name of a model, and the step that loads it where a script does that, or somebody says what it takes.

    ``model`` is what the loader of a script is called with.
    """
    taken = {"io_config": dict(io_config)} if io_config else {}
    if model_script is None:
        if model is None:
            raise ColdpressError("no model was named", hint="pass a folder, a file or a hub id")
        if script_dir is not None:
            raise ColdpressError("script_dir has no effect without model_script", hint="leave it out")
        return str(model), (Step("onnx_conversion", taken),) if taken else ()
    inner = Path(script_dir or "") / model_script
    found = inner if script_dir is not None and not Path(model_script).is_file() else Path(model_script)
    is_own = script_dir is not None and Path(script_dir).resolve() == found.resolve().parent  # it imports from there
    given = {"model_path": model, "script_dir": None if is_own else script_dir}
    named = {name: str(one) for name, one in given.items() if one is not None}
    return str(found), (Step("onnx_conversion", {**named, **taken}),)


def press_recipe(options: dict[str, Any], target: Target) -> tuple[Step, ...]:
    """``auto-opt`` and ``optimize``: a press of whatever the source is; options left out keep the pass's defaults.

    An algorithm that works layer by layer runs before it, and its codes are pressed as they are: so the grid that is
    fast on the target is chosen for it, too. A rotation comes first of all. Weights of 4 bits are calibrated where
    nobody says how to round them, if that is possible, on so much text as it takes.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.pop("tune_session_params", False):
        return (*press_recipe(given, target), Step("session_params_tuning"))
    rotation, data = given.pop("rotation", None), {name: given.pop(name) for name in DATA if name in given}
    attached = _attached(given.pop("adapter_path", ()), rotation or given.get("algorithm"))
    algorithm, is_float = given.get("algorithm"), given.get("precision", "int4") not in ("int4", "int8")
    if algorithm is None and given.get("precision", "int4") == "int4":
        algorithm = DEFAULT
        if rotation != "spinquant" and "data" not in data:  # which learns from as much as it can
            data = {"num_samples": 0, **data} if data else {"num_samples": 0, "if_possible": True}
    if is_float and (rotation or algorithm in QUANTIZED_FIRST):
        raise ColdpressError(
            f"{rotation or algorithm} has no effect with precision {given['precision']}, which keeps weights float",
            hint="use --precision int4 or int8",
        )
    grid = {"group_size": given["block_size"]} if "block_size" in given else {}
    if target.short_name != "cpu":
        grid["symmetric"] = True
    first = {**grid, **with_data(data), **{name: given[name] for name in _FOR_BOTH if name in given}}
    if algorithm in QUANTIZED_FIRST:
        given.pop("algorithm", None)
        first |= _of_head(given, algorithm)
        return (
            *quantize_recipe({**first, "algorithm": algorithm, "rotation": rotation}),
            *attached,
            Step("press", given),
        )
    if data and rotation != "spinquant":
        raise ColdpressError(
            f"{next(iter(data))} has no effect with --algorithm {algorithm or 'kquant'}, which needs no data",
            hint=f"use --algorithm {' or '.join(QUANTIZED_FIRST[:2])}",
        )
    return (*_rotation(rotation, first), *attached, Step("press", given))


def capture_recipe(options: dict[str, Any]) -> tuple[Step, ...]:
    """``capture-onnx-graph``: the graph as it is, in float32 unless said otherwise, with sizes fixed and for an opset
    where that is asked for."""
    given = {_CALLED.get(name, name): value for name, value in options.items() if value is not None}
    fixed, opset = given.pop("fixed", {}), given.pop("target_opset", None)
    attached = _attached(given.pop("adapter_path", ()), None)
    sizes = {"dim_param": [*fixed], "dim_value": [*fixed.values()]}
    return (
        *attached,
        Step("press", {"precision": "fp32", **given}),
        *([Step("dynamic_to_fixed_shape", sizes)] if fixed else []),
        *([Step("onnx_opset_conversion", {"target_opset": opset})] if opset is not None else []),
    )


_CALLED = {"int4_block_size": "block_size", "int4_accuracy_level": "accuracy_level"}


def _of_head(given: dict[str, Any], algorithm: str) -> dict[str, Any]:
    """How many bits a calibration gives to the head: those that are asked for, else four where that pays."""
    if given.get("precision", "int4") != "int4" or algorithm not in CALIBRATED:
        return {}
    if "head_bits" in given:
        return {"head_bits": 4} if given["head_bits"] == 4 else {}
    return {} if "embedding_bits" in given else {"head_bits": 0}


def _attached(adapters: Sequence[str], algorithm: str | None) -> tuple[Step, ...]:
    """The step that puts adapters onto the model, quantized or not."""
    if not adapters:
        return ()
    if algorithm not in (None, *_KEEPS_INPUTS):
        raise ColdpressError(
            f"{algorithm} rescales or rotates what layers read, so adapters of the model before it would not fit",
            hint=(
                f"use --algorithm {', '.join(_KEEPS_INPUTS)}; or quantize first, and fine-tune on the quantized folder"
            ),
        )
    return (Step("attach_adapters", {"adapter_path": list(map(str, adapters))}),)


def quantize_recipe(options: dict[str, Any]) -> tuple[Step, ...]:
    """``quantize``: a Hugging Face folder stays one; options left out keep the pass's defaults."""
    given = {name: value for name, value in options.items() if value is not None}
    rotation = given.pop("rotation", None)
    if (named := given.get("algorithm")) in _ROTATED:
        if rotation not in (None, named):
            raise ColdpressError(
                f"algorithm {named} and rotation {rotation} are two rotations", hint="leave one of them out"
            )
        rotation = given.pop("algorithm")
    by_weights = given.get("algorithm") in _BY_WEIGHTS and not _BUDGETS & given.keys()
    if by_weights and rotation != "spinquant" and (named := next((name for name in DATA if name in given), None)):
        raise ColdpressError(
            f"{named} has no effect with {given['algorithm']}, which needs no data",
            hint=f"use --algorithm {' or '.join(QUANTIZED_FIRST[:2])}",
        )
    given = with_data(given)
    steps = _rotation(rotation, given)
    if rotation == "spinquant" and by_weights:
        for name in {"data", "max_memory"} & given.keys():  # the data is for the rotation alone
            del given[name]
    return (*steps, Step("quantize", given))


def finetune_recipe(options: dict[str, Any]) -> tuple[Step, ...]:
    """``finetune``: rows of files or of a hub set, a row a text; what is no option of the data is one of the pass."""
    given = {name: value for name, value in options.items() if value is not None}
    data = {ours: given.pop(name) for name, ours in _ROWS.items() if name in given}
    held_out = {ours: given.pop(name) for name, ours in _HELD_OUT.items() if name in given}
    if not {"data_name", "data_files"} & data.keys():
        raise ColdpressError("there is nothing to train on", hint="name it with --data_name or --data_files")
    rows = {"strategy": "line_by_line", "end_token": True, "max_seq_len": 1024, **data}
    if held_out:
        others = {name: value for name, value in rows.items() if name not in ("max_samples", *_HELD_OUT.values())}
        is_of_hub = not data.get("data_files")
        held_out = {**others, **({"data_name": data.get("data_name")} if is_of_hub else {}), **held_out}
        given["eval_data"] = {"type": "text_corpus", "parameters": held_out}
    return (Step("lora", {**given, "train_data": {"type": "text_corpus", "parameters": rows}}),)


#: options of ``finetune`` that say what the rows are -> parameters of the data
_ROWS = {
    **{
        name: name
        for name in ("data_name", "data_files", "text_template", "max_seq_len", "max_samples", "answers_only")
    },
    "text_field": "text_cols",
    "use_chat_template": "chat_template",
    "train_subset": "subset",
    "train_split": "split",
}
_HELD_OUT = {"eval_files": "data_files", "eval_subset": "subset", "eval_split": "split"}


def _rotation(rotation: str | None, options: dict[str, Any]) -> tuple[Step, ...]:
    """The step that rotates the network, if one is asked for; a learned one knows the grid that follows."""
    if rotation is None:
        return ()
    shared = {name: options[name] for name in ("trust_remote_code",) if name in options}
    if rotation == "spinquant":
        shared |= {name: options[name] for name in _LEARNED_FOR if name in options}
        shared.setdefault("symmetric", options.get("precision") == "int8")
    return (Step("rotate", {"rotation": rotation, **shared}),)


_ON_ONNX = (
    *("algorithm", "precision", "block_size", "symmetric", "accuracy_level", "head_bits", "lm_head", "embeddings"),
    *("modules_to_not_convert", "data"),
)


def _for_onnx(steps: Sequence[Step], model: Model | Planned) -> tuple[Step, ...]:
    """The steps for a source that is a graph already, or becomes one: pressing it and quantizing it are then one pass,
    which knows the options that make sense there."""
    found = [replace(step, any_of=tuple(one for inner in step.any_of for one in _for_onnx([inner], model)))
             for step in steps]  # fmt: skip
    places = [index for index, step in enumerate(found) if step.type in ("quantize", "press")]
    if not places:
        return tuple(found)
    given = {name: value for index in reversed(places) for name, value in found[index].parameters.items()}
    optional = any(found[index].optional for index in places)
    own = [replace(one, optional=optional) for one in _on_onnx(given, model, is_verb=found[places[-1]].type == "press")]
    return (*found[: places[0]], *own, *(found[i] for i in range(places[0], len(found)) if i not in places))


def _on_onnx(options: dict[str, Any], model: Model | Planned, is_verb: bool) -> tuple[Step, ...]:
    """What makes an ONNX model of the precision that is asked for out of another.

    Of what does not generate, the fastest way to it is looked for on this machine, unless more is said than what it
    shall be. ``is_verb``: whether it is asked for a model for a device, not for weights with fewer bits.
    """
    given = {name: value for name, value in options.items() if name not in ("use_ort_genai", "trust_remote_code")}
    if given.get("head_bits") == 0:  # as the calibration of a Hugging Face model decides
        del given["head_bits"]
    if "group_size" in given:
        given["block_size"] = given.pop("group_size")
    is_free = not _generates(model) and not given.keys() - {"precision", "data"}
    if is_verb and is_free and "precision" not in given:
        given["precision"] = "int8"
    precision = given.get("precision", "int4")
    if precision == "fp32" and model.format in MODULES:
        if further := given.keys() - {"precision"}:
            raise ColdpressError(f"{min(further)} has no effect on a module in float32", hint="leave it out")
        return ()
    if precision == "bf16" or (precision == "fp32" and not is_free):
        hint = "use --precision int4, int8 or fp16; or press the Hugging Face model it was made from"
        raise ColdpressError(f"an ONNX model is not made {precision} here", hint=hint)
    if (is_free and precision in ("int8", "fp32")) or (is_free and is_verb and precision == "int4"):
        return (Step("onnx_fastest", given),)
    if precision == "fp16":
        del given["precision"]
    for name in given:
        if precision == "fp16" or name not in _ON_ONNX:
            where = "an ONNX model" if name not in _ON_ONNX else f"precision {precision}"
            hint = "leave it out, or press the Hugging Face model it was made from"
            raise ColdpressError(f"{name} has no effect on {where}", hint=hint)
    return (Step("onnx_float_to_float16" if precision == "fp16" else "quantize_onnx", given),)


def _generates(model: Model | Planned) -> bool:
    """Whether an ONNX model is one that generates, with caches or settings for that."""
    from coldpress.models.onnx_folder import has_caches

    return isinstance(model, Model) and model.format == "onnx" and has_caches(model.path)


def _check_device(device: str) -> None:
    """For a Hugging Face folder the device is where layers are quantized; a graph may be meant for one that is not
    here."""
    if device == "npu":
        raise ColdpressError(
            "layers are quantized on a cpu or gpu, not on an npu",
            hint="leave --device out; auto-opt --device npu presses the folder for it",
        )
    if device == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise ColdpressError(
                f"--device gpu: torch {torch.__version__} finds no CUDA device here",
                hint="use --device cpu, or install a torch with CUDA where there is a GPU",
            )


def complete(workflow: Workflow, model: Model | Planned) -> tuple[Step, ...]:
    """The workflow's passes, after those that bring the model into a format the first of them accepts."""
    steps = tuple(one for step in workflow.passes for one in _attached_first(step))
    if model.format not in ("hf", "gguf"):
        steps = tuple(step for step in steps if not step.parameters.get("if_possible"))
    if model.format == "onnx":
        return _for_onnx(steps, model)
    if model.format in MODULES:
        is_named = bool(steps) and steps[0].type == "onnx_conversion"
        return (steps[0] if is_named else Step("onnx_conversion"), *_for_onnx(steps[is_named:], model))
    if steps and steps[-1].type in ("quantize", "lora"):
        _check_device(workflow.target.device)
    accepted = list(_accepted(steps[0])) if steps else []
    takes_it = bool(steps) and all("gguf" in formats for formats in accepted)
    is_for_graphs = bool(steps) and all(formats == ("onnx",) for formats in accepted)  # which the check then says
    if model.format == "gguf" and not takes_it and not is_for_graphs:
        return (Step("unpack_gguf"), *steps)
    if model.format == "multimodal" and not (steps and all("multimodal" in formats for formats in _accepted(steps[0]))):
        code = {"trust_remote_code": True} if workflow.trust_remote_code else {}
        return (Step("take_text_model", code), *steps)
    return steps


def _attached_first(step: Step) -> tuple[Step, ...]:
    """A merge that names its adapter is two steps, so that the merged model can be compared with what it was made
    of."""
    given = dict(step.parameters)
    if step.type != "merge_adapter_weights" or given.get("adapter_path") is None:
        return (step,)
    attach = Step("attach_adapters", {"adapter_path": [given.pop("adapter_path")]})
    return attach, replace(step, parameters=given)


def expected_format(workflow: Workflow) -> str:
    """The format of a workflow's model, as far as its name and its passes tell."""
    name = {".onnx": "onnx", ".gguf": "gguf", ".py": "script", ".pt2": "pt2"}.get(PurePath(workflow.model).suffix)
    formats = next(_accepted(workflow.passes[0])) if workflow.passes else ("hf",)
    return name or ("hf" if "hf" in formats else formats[0])


def _accepted(step: Step) -> Iterator[tuple[str, ...]]:
    """The formats that a step accepts, or each of its alternatives."""
    for one in step.any_of:
        yield from _accepted(one)
    if not step.any_of:
        yield parts.find("passes", step.type).accepts


def metrics_for(workflow: Workflow, model: Model, source: Model) -> tuple[Measure, ...]:
    """What is measured of a finished model: what the workflow names, else its size, and how it generates.

    A model that is not verified is not run at all.
    """
    if workflow.metrics is not None:
        return workflow.metrics
    if model.format == "adapter":
        return ()
    task = task_of_facts(source.format, model.provenance.source.architecture or "")
    runs = model.format == "onnx" and workflow.verify.enabled and workflow.target.is_here and task is not None
    return tuple(Measure(name) for name in ("size", *(task.measured(model) if runs and task else ())))
