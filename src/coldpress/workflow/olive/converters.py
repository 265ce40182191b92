"""Values of Olive's parameters that a table of values cannot translate."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError, did_you_mean

_REGULAR = "re:"


def globs_of_substrings(names: list[str]) -> list[str]:
    """Parts of names of modules as globs: ``lm_head`` is ``*lm_head*``."""
    for name in names:
        if name.startswith(_REGULAR):
            raise ColdpressError(f"'{name}' is a regular expression", hint="write a glob, such as *.mlp.*")
    return [f"*{name}*" for name in names]


def globs_of_nodes(names: list[str]) -> list[str]:
    """Names of nodes of the model builder, such as ``/model/layers.0/attn/q_proj/MatMul``, as globs over modules."""
    modules = (name.strip("/").removesuffix("/MatMul").replace("/", ".") for name in names)
    return [module.replace(".attn.", ".self_attn.") for module in modules]


def glob_of_pattern(pattern: str) -> str:
    """A simple regular expression as a glob: ``.*logits`` is ``*logits``."""
    glob = pattern.strip("^$").replace(".*", "*").replace("\\.", ".")
    if not re.fullmatch(r"[\w*/.-]+", glob) or re.search(r"(?<!\\)\.(?!\*)", pattern.strip("^$")):
        raise ColdpressError(f"'{pattern}' is a regular expression", hint="write a glob, such as present*")
    return glob


def overrides(modules: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Other bits for some modules: ``{"model.layers.0.mlp": {"bits": 8}}`` is ``model.layers.0.mlp*=int8``."""
    found = []
    for name, values in modules.items():
        if name.startswith(_REGULAR):
            raise ColdpressError(f"'{name}' is a regular expression", hint="name modules, or a glob such as *.mlp.*")
        for key in values:
            if key != "bits":
                raise ColdpressError(
                    f"'{key}' of '{name}' cannot differ from that of other modules", hint="give other bits alone"
                )
        found.append(f"{name}=int{values['bits']}")
    return found


#: keys of one of GPTQModel's patterns that may say what all layers have -> their names and defaults in the pass
_SHARED = {"sym": ("sym", True), "group_size": ("group_size", 128), "desc_act": ("desc_act", None)}


def dynamic(patterns: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
    """GPTQModel's patterns over modules: ``{"-:.*gate.*": {}, "+:.*lm_head.*": {"bits": 8}}``; none for false."""
    found: dict[str, Any] = {"modules_to_not_convert": [], "overrides": []}
    for pattern, values in (patterns or {}).items():
        glob = glob_of_pattern(re.sub(r"^[+-]:", "", pattern))
        if pattern.startswith("-:"):
            found["modules_to_not_convert"].append(glob)
            continue
        for key, value in values.items():
            name, default = _SHARED.get(key, (key, None))
            if key != "bits" and (key not in _SHARED or (value != beside.get(name, default) and key != "desc_act")):
                raise ColdpressError(
                    f"'{key}: {value}' of '{pattern}' differs from that of other modules", hint="give other bits alone"
                )
        found["overrides"] += [f"{glob}=int{values['bits']}"] if "bits" in values else []
    return found if found["modules_to_not_convert"] else {"overrides": found["overrides"]}


def surgeries(given: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Surgeries with their parameters: ``[{"surgeon": "RenameInputs", "old_names": [...], ...}]``."""
    found = []
    for one in given:
        parameters = dict(one)
        name = parts.file_name(parameters.pop("surgeon"))
        if name not in parts.names("surgeries"):
            raise ColdpressError(f"there is no surgery like {one['surgeon']}", hint=_other_surgery(name))
        found.append({"type": name, **({"parameters": parameters} if parameters else {})})
    return found


def _other_surgery(name: str) -> str:
    return (
        did_you_mean(name, parts.names("surgeries")) or "write it as a part of your own: docs/design.md, Adding a part"
    )


def average_bits(ratio: float, beside: Mapping[str, Any]) -> float:
    """The bits of a weight on average, scales included, where this share of the weights has ``bits`` and the rest
    ``high_bits``."""
    low, high, group = (int(beside.get(name) or default) for name, default in _SELECTED)
    return round(ratio * low + (1 - ratio) * high + _BITS_OF_A_SCALE / group, 3)


#: of SelectiveMixedPrecision, its defaults
_SELECTED = (("bits", 4), ("high_bits", 8), ("group_size", 128))
_BITS_OF_A_SCALE = 20  # a half, and a zero point of 4 bits


def tensor_overrides(tensors: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """How some tensors are quantized: ``{"tensor": [{"quant_type": "QUInt16"}]}``."""
    return {name: [_named_type(dict(one)) for one in channels] for name, channels in tensors.items()}


def _named_type(one: dict[str, Any]) -> dict[str, Any]:
    kind = str(one.get("quant_type", "")).removeprefix("QuantType.").removeprefix("Q").lower()
    return {**one, "quant_type": kind} if kind else one


def provider_options(value: Any) -> dict[str, str]:
    """Options of the execution provider, by name."""
    return {str(name): str(one) for name, one in value.items()}


def listed(value: Any) -> list[Any]:
    """One or several, as a list without nulls."""
    return [one for one in value if one is not None] if isinstance(value, list | tuple) else [value]


def names(value: Any) -> list[str]:
    """Names, one or several; none for null."""
    return [] if value is None else [str(one) for one in listed(value)]


def names_of_tasks(value: Any) -> list[str]:
    """Names of tasks of lm-evaluation-harness, one or several."""
    if any(not isinstance(task, str) for task in listed(value)):
        hint = "write it as a YAML file, and name the task and its folder (task_path) in a workflow file"
        raise ColdpressError("a task is described here, not named", hint=hint)
    return names(value)


def training_arguments(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Training arguments, those in ``extra_args`` among them."""
    given = dict(value or {})
    more = given.pop("extra_args", None)
    return {**given, **(more or {})}


def execution_modes(value: Any) -> list[str]:
    """ONNX Runtime's numbers of execution modes, by name."""
    return _named(value, {0: "sequential", 1: "parallel"})


def optimization_levels(value: Any) -> list[str]:
    """ONNX Runtime's numbers of levels of graph optimization, by name."""
    return _named(value, {0: "disable_all", 1: "basic", 2: "extended", 3: "layout", 99: "all"})


def _named(value: Any, names: Mapping[int, str]) -> list[str]:
    for one in listed(value):
        if one not in names:
            raise ColdpressError(f"{one!r} is none of {', '.join(map(str, names))}")
    return [names[one] for one in listed(value)]


def files(value: Any) -> list[str]:
    """Files, one or several; of a mapping from splits to files those of its only split."""
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise ColdpressError("files of several splits", hint="write one data config for each split")
        return files(next(iter(value.values())))
    return [str(one) for one in listed(value)]


def only_one(value: Any) -> str:
    """The only one of a list of columns."""
    columns = listed(value)
    if len(columns) != 1:
        raise ColdpressError(f"one column is needed, not {len(columns)}", hint="name one")
    return str(columns[0])


def text_columns(value: Any) -> dict[str, str]:
    """The column with the text, and with that of a second text."""
    columns = listed(value)
    if not 1 <= len(columns) <= 2:
        raise ColdpressError(f"one or two columns of text are needed, not {len(columns)}", hint="name one or two")
    return dict(zip(("text_col", "pair_col"), columns, strict=False))


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds."""
    return float(seconds) * 1e3


CONVERTERS: Mapping[str, Callable[..., Any]] = {
    "dynamic": dynamic,
    "globs_of_substrings": globs_of_substrings,
    "globs_of_nodes": globs_of_nodes,
    "glob_of_pattern": glob_of_pattern,
    "overrides": overrides,
    "surgeries": surgeries,
    "average_bits": average_bits,
    "provider_options": provider_options,
    "tensor_overrides": tensor_overrides,
    "listed": listed,
    "names": names,
    "names_of_tasks": names_of_tasks,
    "training_arguments": training_arguments,
    "execution_modes": execution_modes,
    "optimization_levels": optimization_levels,
    "files": files,
    "only_one": only_one,
    "text_columns": text_columns,
    "milliseconds": milliseconds,
}


#: converters that also look at what stands beside the value
_LOOK_BESIDE = ("dynamic", "average_bits")


def converted(name: str, value: Any, beside: Mapping[str, Any]) -> Any:
    """What a converter makes of a value; raises ColdpressError for one of another type than it takes."""
    try:
        return CONVERTERS[name](value, beside) if name in _LOOK_BESIDE else CONVERTERS[name](value)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ColdpressError(
            f"{value!r} is not what belongs here", hint=f"it takes: {CONVERTERS[name].__doc__}"
        ) from None
