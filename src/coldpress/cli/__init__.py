"""The command line: ``coldpress``, and the same command under the documents' name ``olive``.

One file holds one verb. This module knows their names and first lines, so that help needs none of them.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import click

from coldpress.environment import without_secrets
from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean

VERBS = {
    "auto-opt": "Turn a model into the best ONNX model for a device.",
    "optimize": "The same as auto-opt, under its newer name.",
    "capture-onnx-graph": "Turn a PyTorch model into an ONNX graph, and do nothing else to it.",
    "quantize": "Quantize a model's weights for the inputs they get; a Hugging Face folder comes out.",
    "finetune": "Train an adapter (LoRA and others) on a model, quantized or not.",
    "run": "Run a workflow file (YAML or JSON).",
    "migrate": "Turn a configuration of Olive into a workflow file.",
    "run-pass": "Run one pass on one model.",
    "tune-session-params": "Find the session options with which an ONNX model runs fastest here.",
    "plan": "Predict time, memory, disk and output size; do nothing.",
    "verify": "Compare a pressed model with its source.",
    "report": "Show what is known of results: one in full, or several side by side.",
    "lint": "Say what is slow or wasteful in an ONNX model, made anywhere.",
    "evaluate": "Measure one or more models and show one table.",
    "benchmark": "Measure speed of models, taken in turns.",
    "convert-adapters": "Turn a PEFT folder into an adapter file for ONNX Runtime.",
    "generate-adapter": "Take the LoRA weights of an ONNX model out, into an adapter file.",
    "extract-adapters": "Write the adapters that lie inside a checkpoint as PEFT folders.",
    "chat": "Talk to a pressed model in the terminal.",
    "serve": "Serve pressed models to OpenAI's clients, an adapter for each request.",
    "doctor": "Examine this machine and installation.",
    "list": "List passes, metrics, kinds of data, rules and other parts.",
    "show": "Show a pass, metric or other part with its parameters, or the schema of workflow files.",
    "cache": "Look into the cache, or clean it.",
    "completion": "Print the shell completion script for bash, zsh or fish.",
}


class _Verbs(click.Group):
    """Loads a verb's file when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("_", "-")
        if name not in VERBS:
            return None
        module = importlib.import_module(f"coldpress.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0].replace("_", "-")
        if name not in VERBS and not ctx.resilient_parsing:  # as when a shell completes what stands behind it
            raise ColdpressError(f"there is no command '{args[0]}'", hint=did_you_mean(name, VERBS))
        return super().resolve_command(ctx, [name, *args[1:]])


@click.group(
    cls=_Verbs,
    help="Press a model into the best ONNX model for a target, verified and measured.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("-", "_"),
    },
)
@click.version_option(package_name="coldpress")
def app() -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 done, 1 the work failed, 2 the request was wrong, 3 worse than
    tolerance."""
    arguments = sys.argv[1:] if args is None else args
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, _stop)
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str]) -> int:
    try:
        code = app.main(arguments, prog_name=_called_as(), standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("stopped; nothing half-written is left behind", err=True)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        return _report(_from_click(error))
    except ColdpressError as error:
        return _report(error)
    except OSError as error:
        return _report(_from_system(error), debug="--debug" in arguments)
    except Exception as error:  # a bug is told in a line, with a way to see more
        if "--debug" in arguments:
            raise
        failure = f"{type(error).__name__}: {error}"
        return _report(ColdpressError(failure, hint="this is a bug: --debug shows where", exit_code=WORK_FAILED))


def _called_as() -> str:
    """``olive`` or ``coldpress``, as the user typed it; completion depends on it."""
    name = Path(sys.argv[0]).stem
    return name if name == "olive" else "coldpress"


def _report(error: ColdpressError, debug: bool = False) -> int:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {without_secrets(error.message)}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {without_secrets(error.hint)}", err=True)
    if debug:
        raise error
    return error.exit_code


def _from_click(error: click.UsageError) -> ColdpressError:
    if isinstance(error, click.NoSuchOption):
        known = [name for parameter in (error.ctx.command.params if error.ctx else []) for name in parameter.opts]
        hint = _closest_option(error.option_name, [name for name in known if name.startswith("--")])
        return ColdpressError(f"there is no option '{error.option_name}'", hint=hint)
    command = f"{error.ctx.command_path} --help" if error.ctx else "coldpress --help"
    message = error.format_message().rstrip(".")
    return ColdpressError(message[0].lower() + message[1:], hint=f"see {command}")


def _closest_option(option: str, known: list[str]) -> str:
    """A hint that names the option that was meant, of which perhaps only the beginning was typed."""
    word = option.lstrip("-")
    start = {name.lstrip("-")[: len(word)]: name for name in reversed(known)}
    close = difflib.get_close_matches(word, start, n=1, cutoff=0.8)
    return f"did you mean '{start[close[0]]}'?" if close else did_you_mean(option, known)


def _from_system(error: OSError) -> ColdpressError:
    import errno

    if error.errno == errno.ENOSPC:
        return ColdpressError(
            f"no space left on the disk ({error.filename or 'while writing'})",
            hint="free some, or move the cache with --cache_dir; `coldpress plan` says how much is needed",
            exit_code=WORK_FAILED,
        )
    return ColdpressError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), exit_code=WORK_FAILED)


class _Stopped(KeyboardInterrupt):
    """Of a class of its own: Python notes where the plain one passes through code made of a string, as dataclasses are
    made,

    and then ends by the signal instead of with the exit code, whoever caught it.
    """


def _stop(signum: int, frame: Any) -> None:
    raise _Stopped
