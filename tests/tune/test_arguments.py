"""TrainingArguments: today's names, older ones, flags with their types, and what is refused."""

from __future__ import annotations

import pytest

from coldpress.errors import ColdpressError
from coldpress.tune.arguments import parse_flags, read_arguments


def test_older_names_are_understood(tmp_path):
    given = {"evaluation_strategy": "steps", "eval_steps": 5, "warmup_ratio": 0.1, "per_gpu_train_batch_size": 3}
    made = read_arguments(given).make(tmp_path, 7, "cpu", None)
    assert made.eval_strategy == "steps" and made.warmup_steps == 0.1 and made.per_device_train_batch_size == 3
    assert made.seed == 7 and made.learning_rate == 2e-4 and made.report_to == []


def test_the_rows_of_accumulated_batches_are_one_step(tmp_path):
    read = read_arguments({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    made = read.make(tmp_path, 0, "cpu", None)
    assert read.rows_in_step == 8 and made.per_device_train_batch_size == 8 and made.gradient_accumulation_steps == 1


def test_grouping_by_length_is_needless_and_that_is_said():
    [remark] = read_arguments({"group_by_length": True}).remarks
    assert "rows are packed" in remark
    assert not read_arguments({"group_by_length": False}).remarks


def test_halves_are_types_of_products():
    assert read_arguments({"bf16": True}).dtype == "bfloat16" and read_arguments({"fp16": True}).dtype == "float16"
    assert read_arguments({"bf16": False}).dtype is None


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"learning_rat": 1e-4}, "no training argument 'learning_rat'", "learning_rate"),
        ({"max_steps": "many"}, "training_args.max_steps is 'many'; it takes int", ""),
        ({"output_dir": "out"}, "training_args.output_dir is not taken", "--output_path"),
        ({"overwrite_output_dir": True}, "overwrite_output_dir is not taken", "--fresh"),
        ({"push_to_hub": True}, "push_to_hub is not taken", "upload"),
    ],
)
def test_what_is_not_taken_is_told(given, message, hint):
    with pytest.raises(ColdpressError, match=message) as caught:
        read_arguments(given)
    assert hint in (caught.value.hint or "")


def test_values_that_transformers_refuses_are_told(tmp_path):
    with pytest.raises(ColdpressError, match="training_args: "):
        read_arguments({"lr_scheduler_type": "wavy"}).make(tmp_path, 0, "cpu", None)


def test_what_asks_for_nothing_is_passed_over():
    assert read_arguments({"overwrite_output_dir": False, "do_train": False}).given == {}


def test_flags_get_the_types_of_their_fields():
    found = parse_flags(
        [
            "--max_steps",
            "100",
            "--learning_rate=1e-4",
            "--gradient_checkpointing",
            "--lr_scheduler_type",
            "cosine",
            "--warmup-steps",
            "5",
            "--adam_beta2",
            "0.99",
            "--eval_strategy",
            "steps",
            "--tf32",
            "false",
        ]
    )
    assert found == {
        "max_steps": 100,
        "learning_rate": 1e-4,
        "gradient_checkpointing": True,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5.0,
        "adam_beta2": 0.99,
        "eval_strategy": "steps",
        "tf32": False,
    }


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--max_step", "1"], "no option '--max_step'", "--max_steps"),
        (["--lora_rr", "1"], "no option '--lora_rr'", "--lora_r"),
        (["--max_steps", "ten"], "--max_steps: 'ten'", ""),
        (["rows.jsonl"], "what is 'rows.jsonl'", ""),
    ],
)
def test_flags_that_do_not_exist_are_told(words, message, hint):
    with pytest.raises(ColdpressError, match=message) as caught:
        parse_flags(words, ["--lora_r", "--method"])
    assert hint in (caught.value.hint or "")
