"""Options that verbs share, and options made from the fields of a pass."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import DataSource, schema
from coldpress.target import DEVICES, PROVIDERS

#: what a verb's function is, before and after click has it
C = TypeVar("C", bound=Callable[..., Any])


class Completed(click.ParamType):
    """A text that shells complete: with one of what is ``offered``, or else with a path."""

    name = "text"

    def __init__(self, offered: Callable[[], Iterable[str]] = tuple):
        self.offered = offered

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = [CompletionItem(one) for one in self.offered() if one.startswith(incomplete)]
        return known or [CompletionItem(incomplete, type="file")]


def _hub_ids() -> Iterable[str]:
    from coldpress.models.sources import hub_ids_at_hand

    return hub_ids_at_hand()


def with_commas(values: Iterable[str]) -> tuple[str, ...]:
    """Values of an option that may come several times, or with commas; a file's name may have some of its own."""
    return tuple(part for one in values for part in ([one] if Path(one).exists() else one.split(",")) if part)


def _with_commas(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return with_commas(values)


PATH = Completed()
DEVICE, PROVIDER = Completed(lambda: DEVICES), Completed(lambda: PROVIDERS)
MODEL = Completed(_hub_ids)
MODEL_HELP = "Folder, file or hub id of the model; it may also stand there without -m."


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The one model that a verb takes, typed by itself or behind ``-m``; the command gets ``model_name_or_path``."""

    @functools.wraps(command)
    def wrapped(*args: Any, model: str | None, model_name_or_path: str | None, **arguments: Any) -> Any:
        named = [name for name in (model, model_name_or_path) if name is not None]
        if len(named) > 1 or (not named and not arguments.get("model_script")):
            raise _not_one(named)
        return command(*args, model_name_or_path=named[0] if named else None, **arguments)

    wrapped = click.option("-m", "--model_name_or_path", type=MODEL, metavar="MODEL", help=MODEL_HELP)(wrapped)
    return click.argument("model", type=MODEL, required=False)(wrapped)


def script_options(command: C) -> C:
    """A module of PyTorch that a script makes; ``-m`` is then what its loader is called with."""
    text = "Folder that the script imports from, beside its own."
    command = click.option("--script_dir", type=PATH, metavar="FOLDER", help=text)(command)
    text = "Python file with _model_loader and _dummy_inputs or _io_config; -m is what the loader is called with."
    return click.option("--model_script", type=PATH, metavar="FILE", help=text)(command)


def models_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The models that a verb takes, typed by themselves or behind ``-m``; the command gets ``models``."""

    @functools.wraps(command)
    def wrapped(*args: Any, models: tuple[str, ...], model_name_or_path: tuple[str, ...], **arguments: Any) -> Any:
        if not (models or model_name_or_path):
            raise _not_one([])
        return command(*args, models=(*models, *model_name_or_path), **arguments)

    wrapped = click.option("-m", "--model_name_or_path", type=MODEL, multiple=True, metavar="MODEL", help=MODEL_HELP)(
        wrapped
    )
    return click.argument("models", type=MODEL, nargs=-1, metavar="MODEL...")(wrapped)


def _not_one(named: list[str]) -> ColdpressError:
    verb = click.get_current_context().command_path
    if named:
        return ColdpressError(f"two models were named: {' and '.join(named)}", hint=f"{verb} takes one of them")
    return ColdpressError(
        "no model was named", hint=f"{verb} MODEL, where MODEL is a folder, a file or a hub id; -m MODEL says the same"
    )


def output_option(default: str) -> Callable[[C], C]:
    text = "Folder for the result."
    return click.option("-o", "--output_path", type=PATH, default=default, show_default=True, help=text)


def adapter_option(command: C) -> C:
    text = "PEFT folders whose adapters the model shall have; several: one after the other."
    return click.option("-a", "--adapter_path", type=PATH, multiple=True, metavar="FOLDER...", help=text)(command)


def rotation_option(command: C) -> C:
    from coldpress.passes.rotate import ROTATIONS

    text = "Rotate the network before any algorithm: quarot at random, spinquant as learned for the grid."
    return click.option("--rotation", type=Choice(ROTATIONS), help=text)(command)


def calibration_options(command: C) -> C:
    """What to calibrate on, in a few words; ``--data``, an option made from the pass's field, says it in full."""
    for option in (
        click.option(
            "--num_samples",
            type=click.IntRange(min=0),
            help="Calibration windows at most; 0: as many as the widest layer needs. [default: 128]",
        ),
        click.option("--max_seq_len", type=int, help="Tokens of a calibration window. [default: 512]"),
        click.option(
            "--use_chat_template/--no_use_chat_template",
            default=None,
            help="Put each text into the model's chat template.",
        ),
        click.option("--text_template", help="Text of a row, such as '### Question: {prompt}'."),
        click.option(
            "--data_files",
            type=PATH,
            multiple=True,
            callback=_with_commas,
            help="Files of calibration data, or a .npz with an array for each input; without any, the shipped text."
            " Several with commas, or the option again.",
        ),
        click.option("--data_name", help="Calibration data: json, csv, parquet, text, or a dataset of the hub."),
    ):
        command = option(command)
    return command


def target_options(command: C) -> C:
    command = click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0: all processors.")(
        command
    )
    command = click.option("--provider", type=PROVIDER, help="Execution provider, such as CPUExecutionProvider.")(
        command
    )
    return click.option("--device", type=DEVICE, help="cpu, gpu or npu.")(command)


def eval_data_option(command: C) -> C:
    text = "Text or jsonl files to compare on, instead of the shipped text; several with commas, or the option again."
    return click.option("--eval_data", type=PATH, multiple=True, callback=_with_commas, help=text)(command)


def verify_options(command: C) -> C:
    command = eval_data_option(command)
    command = click.option("--tolerance", help="Limits, such as 0.1 (KL) or kl=0.1,ppl=1.05.")(command)
    command = verify_memory_option(command)
    return click.option(
        "--no_verify", is_flag=True, help="Do not run the result or compare it with its source; the report will say so."
    )(command)


def verify_memory_option(command: C) -> C:
    text = "Gigabytes that transformers' copy of the source may take in the comparison; default: half of what is free."
    return click.option("--verify_memory", type=float, metavar="GB", help=text)(command)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--log_level``, ``--debug`` and ``--cache_dir``; the command gets a ``session`` instead."""

    @functools.wraps(command)
    def wrapped(log_level: int, debug: bool, cache_dir: str | None, **arguments: Any) -> Any:
        from coldpress.cli.session import Session
        from coldpress.jobs.store import shared

        with Session(log_level, shared(cache_dir)) as session:
            return command(session=session, **arguments)

    wrapped = click.option("--cache_dir", type=PATH, help="Where finished results are kept.")(wrapped)
    wrapped = click.option("--debug", is_flag=True, help="Show the traceback of a failure.")(wrapped)
    return log_level_option(2)(wrapped)


def log_level_option(default: int | None) -> Callable[[C], C]:
    return click.option(
        "--log_level",
        type=click.IntRange(0, 4),
        default=default,
        help="0: everything, 1: steps, 2: warnings, 3: errors, 4: nothing.",
    )


def pass_options(
    part: type[Any], leave_out: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> Callable[..., Any]:
    """One option for each field of a pass, or for some; options that are not given arrive as None."""

    def decorate(command: C) -> C:
        hints = typing.get_type_hints(part)
        for field in reversed(dataclasses.fields(part)):
            if field.name not in leave_out and (only is None or field.name in only):
                command = _option(part, field, hints[field.name])(command)
        return command

    return decorate


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; empty repeatable ones count as left out."""
    return {name: value for name, value in arguments.items() if value is not None and value != ()}


def _option(part: type[Any], field: dataclasses.Field[Any], hint: Any) -> Callable[[C], C]:
    text, choices = field.metadata.get("help", ""), field.metadata.get("choices", ())
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    plain = next(arg for arg in typing.get_args(hint) if arg is not type(None)) if optional else hint
    shown = (
        ""
        if field.default in (None, (), dataclasses.MISSING)
        else f" [default: {str(field.default).lower() if plain is bool else field.default}]"
    )
    help_text = text[:1].upper() + text[1:] + "." + shown
    if plain is bool:
        negative = "asymmetric" if field.name == "symmetric" else f"no_{field.name}"
        return click.option(f"--{field.name}/--{negative}", default=None, help=help_text)
    if typing.get_origin(plain) is tuple:
        item = typing.get_args(plain)[0]
        if isinstance(item, type) and dataclasses.is_dataclass(item):
            return click.option(f"--{field.name}", multiple=True, type=Named(item), help=help_text)
        kind = item if item in (int, float) else PATH if field.name in part.reads or "path" in field.name else str
        return click.option(f"--{field.name}", multiple=True, type=kind, help=help_text)
    if typing.get_origin(plain) is dict:
        return click.option(f"--{field.name}", type=Json(), help=help_text)
    plain = PATH if plain is str and "path" in field.name else plain
    kind = Choice(choices) if choices else Named(DataSource) if plain is DataSource else plain
    return click.option(*_SHORT.get(field.name, ()), f"--{field.name}", type=kind, default=None, help=help_text)


#: options that have a letter, too
_SHORT = {"task": ("-t",)}


class Several(click.Command):
    """A command whose repeatable options also take several values at once: ``--adapter_path a b``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = {
            name for one in self.params if one.multiple and one.param_type_name == "option" for name in one.opts
        }
        spread, last = list[str](), ""
        for argument in args:
            is_option = argument.startswith("-")
            if is_option:
                last = f"--{argument[2:].replace('-', '_')}" if argument.startswith("--") else argument
            elif last in repeatable and spread[-1] != last:
                spread.append(last)
            spread.append(last if is_option and last in repeatable else argument)
        return super().parse_args(ctx, spread)


class Json(click.ParamType):
    """A mapping, written as JSON."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            option = param.opts[-1] if param else "value"
            raise ColdpressError(f"{option}: '{value}' is no mapping in JSON", hint="write '{\"name\": value}'")
        return found


class Named(click.ParamType):
    """A part with its parameters, such as a kind of data, written as in a workflow file; or its name alone.

    ``cls``: the dataclass that holds ``type`` and ``parameters``, and makes the part.
    """

    name = "part"

    def __init__(self, cls: type[Any]):
        self.cls = cls

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import yaml

        option = param.opts[-1] if param else self.name
        try:
            given = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ColdpressError(f"{option}: neither YAML nor JSON: {error}") from error
        found = schema.build(self.cls, {"type": given} if isinstance(given, str) else given, option)
        found.make(option)
        return schema.plain(found)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "'{type: NAME, parameters: {...}}'"


class Choice(click.ParamType):
    """One of some values; a wrong one is answered with the closest."""

    name = "choice"

    def __init__(self, values: tuple[Any, ...]):
        self.values = {str(value): value for value in values}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) not in self.values:
            option = param.opts[-1] if param else "value"
            raise ColdpressError(
                f"{option}: '{value}' is not one of {', '.join(self.values)}",
                hint=did_you_mean(str(value), self.values),
            )
        return self.values[str(value)]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.values)}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(value) for value in self.values if value.startswith(incomplete)]
