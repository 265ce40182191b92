"""``finetune``: train an adapter on a model, quantized or not; flags it does not know itself are TrainingArguments."""

from __future__ import annotations

from typing import Any

import click

from coldpress.cli import VERBS
from coldpress.cli.options import (
    MODEL,
    MODEL_HELP,
    PATH,
    common_options,
    given,
    output_option,
    pass_options,
    target_options,
    with_commas,
)
from coldpress.passes.lora import Lora

_MORE = """
Any field of transformers' TrainingArguments is a flag, too: --max_steps 100, --num_train_epochs 3,
--learning_rate 1e-4, --per_device_train_batch_size 4, --save_steps 50, --gradient_checkpointing, ...
"""
_LISTS = ("data_files", "eval_files", "target_modules", "modules_to_save", "text_field")


class _WithTrainingArguments(click.Command):
    """What is unknown to it is left for TrainingArguments, so its model must stand first to be told from their
    values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["-m", *args] if args and not args[0].startswith("-") else args)


@click.command(
    "finetune",
    cls=_WithTrainingArguments,
    options_metavar="MODEL [OPTIONS]",
    help=VERBS["finetune"],
    epilog=_MORE,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.option("-m", "--model_name_or_path", type=MODEL, required=True, metavar="MODEL", help=MODEL_HELP)
@output_option("models/finetuned")
@click.option("-d", "--data_name", help="json, csv, parquet, text, or a data set of the hub.")
@click.option(
    "--data_files", type=PATH, multiple=True, help="Files with the rows; several with commas, or the option again."
)
@click.option("--text_template", help=r"Text of a row, such as '### Question: {prompt}\n### Answer: {response}'.")
@click.option("--text_field", multiple=True, help="The field that is the text.")
@click.option(
    "--use_chat_template/--no_use_chat_template", default=None, help="Put each text into the model's chat template."
)
@click.option("--train_subset", help="Configuration of a hub data set.")
@click.option("--train_split", help="Split of a hub data set. [default: train]")
@click.option("--eval_subset", help="Configuration of a hub data set to measure the loss on.")
@click.option("--eval_split", help="Split of a hub data set to measure the loss on.")
@click.option("--eval_files", type=PATH, multiple=True, help="Files with rows to measure the loss on.")
@click.option("--max_seq_len", type=click.IntRange(min=2), help="Tokens of a row at most. [default: 1024]")
@click.option("--max_samples", type=click.IntRange(min=1), help="Rows at most. [default: all]")
@click.option(
    "--answers_only",
    is_flag=True,
    default=None,
    help="Train on answers only: the template's last field, or what the assistant says.",
)
@pass_options(Lora, leave_out=("train_data", "eval_data", "training_args", "trust_remote_code"))
@click.option(
    "--resume/--fresh", default=True, help="Go on from a run that was stopped, or forget it. [default: resume]"
)
@target_options
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@click.option("--overwrite", is_flag=True, help="Replace files in an output folder that is not empty.")
@click.option("--dry_run", is_flag=True, help="Check everything, print the resolved workflow and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
@click.pass_context
def command(
    ctx: click.Context, session: Any, resume: bool, overwrite: bool, dry_run: bool, as_json: bool, **arguments: Any
) -> int:
    from coldpress.api import finetune_workflow
    from coldpress.cli.finish import run_and_show, show_resolved
    from coldpress.runs.engine import run
    from coldpress.tune.arguments import parse_flags
    from coldpress.tune.processes import alone, is_first

    known = [name for parameter in ctx.command.params for name in parameter.opts]
    wanted = {name: _listed(name, value) for name, value in given(arguments).items()}
    wanted["training_args"] = parse_flags(ctx.args, known)
    workflow = finetune_workflow(**wanted, fresh=not resume)
    if dry_run:
        return show_resolved(session, workflow, as_json, ("model", "data"))
    session.store.since = workflow.run.open_store().since
    with alone(session.store, workflow) as (session.store, workflow):
        if not is_first():
            return run(workflow, store=session.store).exit_code
        return run_and_show(session, workflow, overwrite, as_json)


def _listed(name: str, value: Any) -> Any:
    """Values of an option that may come several times, or with commas."""
    if name not in _LISTS:
        return value
    return with_commas(value)
