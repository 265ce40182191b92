"""Adapters trained on tiny models: what comes out, on which base, stopped and gone on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import coldpress
from coldpress.models.checkpoint import Checkpoint
from coldpress.quant.grid import Grid, dequantize
from coldpress.tune import checkpoints, trainer
from coldpress.tune.network import load_base
from tests.conftest import TEMPLATE as CHAT
from tests.packed_folders import pack_folder

GRID = Grid(4, 16, False, "float16")


def tensors(report: coldpress.Report) -> dict[str, torch.Tensor]:
    return load_file(Path(report.model.path) / "adapter" / "adapter_model.safetensors")


def peft_logits(folder: Path, base: Path | None = None) -> np.ndarray:
    """What PEFT and transformers make of a base and its adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base or folder / "model", dtype=torch.float32), folder / "adapter"
    ).eval()
    with torch.inference_mode():
        return model(torch.arange(5, 30)[None]).logits[0].numpy()


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_every_method_learns_and_peft_loads_it_on_the_original(method, finetune, tiny_model, tmp_path):
    report = finetune(tiny_model, method=method)
    told = report.data["tuning"]
    assert told["held_out"]["loss_after"] < told["held_out"]["loss_before"]
    assert report.data["verdict"] == "fine-tuned" and report.exit_code == 0
    assert told["method"] == method and told["steps"] == 6 and len(told["loss"]) == 6
    assert np.isfinite(peft_logits(tmp_path / "tuned", base=tiny_model)).all()
    base = np.asarray(load_file(tiny_model / "model.safetensors")["model.norm.weight"])
    assert (np.asarray(load_file(tmp_path / "tuned/model/model.safetensors")["model.norm.weight"]) == base).all()


def test_the_output_holds_the_base_as_it_was_and_the_adapter(finetune, tiny_model, tmp_path):
    finetune(tiny_model)
    files = {
        file.relative_to(tmp_path / "tuned").as_posix() for file in (tmp_path / "tuned").rglob("*") if file.is_file()
    }
    assert files == {
        *("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/tokenizer_config.json"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *("report.json", "report.html", "README.md", "workflow.yaml"),
    }
    weights = Path("model") / "model.safetensors"
    assert (tmp_path / "tuned" / weights).read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    config = json.loads((tmp_path / "tuned/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../model"
    assert sorted(config["target_modules"]) == sorted(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    )
    assert {one.dtype for one in load_file(tmp_path / "tuned/adapter/adapter_model.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.parametrize("kind", ["compressed-tensors", "gptq", "awq"])
def test_a_quantized_base_has_exactly_its_dequantized_values(kind, make_model, tmp_path):
    packed = pack_folder(make_model("source"), tmp_path, kind, lambda module: GRID)
    model = load_base(packed.folder, torch.float32)
    stored = Checkpoint(packed.plain).tensors
    parameters = dict(model.named_parameters())
    for name, span in stored.items():
        assert (parameters[name].numpy() == span.rows(0, span.shape[0])).all(), name
    for module, codes in packed.codes.items():
        assert (
            parameters[f"{module}.weight"].numpy() == dequantize(codes, parameters[f"{module}.weight"].shape[1])
        ).all()


def test_training_on_a_quantized_base_is_training_on_its_values(finetune, make_model, tmp_path):
    packed = pack_folder(make_model("source"), tmp_path, "compressed-tensors", lambda module: GRID)
    on_codes = finetune(packed.folder, "codes")
    on_floats = finetune(packed.plain, "floats")
    ours, theirs = tensors(on_codes), tensors(on_floats)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "quantization_config" in json.loads((tmp_path / "codes/model/config.json").read_text())


def test_the_seed_decides_everything(finetune, tiny_model, tmp_path):
    once, again = (finetune(tiny_model, name, cache_dir=tmp_path / name) for name in ("a", "b"))
    other = finetune(tiny_model, "c", training_args={"seed": 5})
    assert all(torch.equal(tensors(once)[name], value) for name, value in tensors(again).items())
    assert not all(torch.equal(tensors(once)[name], value) for name, value in tensors(other).items())


def test_packed_rows_teach_what_single_ones_do(finetune, tiny_model):
    plain = {"lora_dropout": 0.0}
    packed, single = (finetune(tiny_model, f"{joins}", packing=joins, **plain) for joins in (True, False))
    losses = [[loss for _, loss in one.data["tuning"]["loss"]] for one in (packed, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


class Stopped(Exception):
    """Stands for a process that was killed."""


@pytest.fixture
def stop_at(monkeypatch):
    """The training is interrupted when it comes to a step; None: it is not."""

    def at(step: int | None) -> None:
        def note(self, total):
            if step is not None and self.state.global_step + 1 == step:
                raise Stopped
            own(self, total)

        monkeypatch.setattr(trainer.AdapterTrainer, "_note", note)

    own = trainer.AdapterTrainer._note
    return at


@pytest.mark.parametrize("epochs", [{}, {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 9}])
def test_a_stopped_training_goes_on_to_the_same_result(epochs, finetune, tiny_model, tmp_path, stop_at):
    saving = {"save_steps": 2, "lr_scheduler_type": "cosine", **epochs}
    whole = finetune(tiny_model, "whole", saving, cache_dir=tmp_path / "other")
    stop_at(6)
    with pytest.raises(Stopped):
        finetune(tiny_model, "stopped", saving)
    assert not (tmp_path / "stopped").exists()
    stop_at(None)
    resumed = finetune(tiny_model, "stopped", saving)
    assert resumed.data["tuning"]["resumed_at"] == 4
    assert all(torch.equal(tensors(whole)[name], value) for name, value in tensors(resumed).items())
    for part in ("loss", "held_out", "steps"):
        assert resumed.data["tuning"][part] == whole.data["tuning"][part]
    assert not list((tmp_path / "cache/kept").glob("tune-*"))


def test_a_half_written_checkpoint_is_not_gone_on_from(finetune, tiny_model, tmp_path, stop_at):
    stop_at(6)
    with pytest.raises(Stopped):
        finetune(tiny_model, "stopped", {"save_steps": 2})
    [last] = (tmp_path / "cache").rglob("checkpoint-4")
    (last / "trainer_state.json").unlink()
    stop_at(None)
    assert finetune(tiny_model, "stopped", {"save_steps": 2}).data["tuning"]["resumed_at"] == 2


def test_fresh_forgets_what_was_begun(finetune, tiny_model, stop_at):
    stop_at(6)
    with pytest.raises(Stopped):
        finetune(tiny_model, "stopped", {"save_steps": 2})
    stop_at(None)
    assert finetune(tiny_model, "stopped", {"save_steps": 2}, fresh=True).data["tuning"]["resumed_at"] == 0


def test_a_loss_that_is_no_number_ends_the_training(finetune, tiny_model, tmp_path, monkeypatch):
    own = trainer.AdapterTrainer._note

    def note(self, total):
        own(self, total * float("nan") if self.state.global_step == 4 else total)

    monkeypatch.setattr(trainer.AdapterTrainer, "_note", note)
    with pytest.raises(
        coldpress.ColdpressError, match=r"loss of step 5 is not .*last good checkpoint is .*checkpoint-3"
    ) as caught:
        finetune(tiny_model, training_args={"save_steps": 1, "save_total_limit": 3})
    assert caught.value.exit_code == 1 and "learning_rate" in caught.value.hint
    assert sorted(one.name for one in (tmp_path / "cache").rglob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_learning_rate_that_breaks_the_weights_ends_it_too(finetune, tiny_model):
    with pytest.raises(coldpress.ColdpressError, match="is not a finite number; there was no checkpoint before it"):
        finetune(tiny_model, training_args={"learning_rate": 1e30})


def test_no_space_for_checkpoints_is_said_before_the_first_step(finetune, tiny_model, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(coldpress.ColdpressError, match="no space for checkpoints: 3 of them take") as caught:
        finetune(tiny_model)
    assert caught.value.exit_code == 1


def test_a_disk_that_fills_up_is_told_with_the_last_checkpoint(finetune, tiny_model, monkeypatch):
    own = trainer.AdapterTrainer._save_optimizer_and_scheduler

    def full(self, output_dir):
        if "checkpoint-4" in output_dir:
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        own(self, output_dir)

    monkeypatch.setattr(trainer.AdapterTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(
        coldpress.ColdpressError, match=r"no space left for a checkpoint .* the last one is checkpoint-2"
    ):
        finetune(tiny_model, training_args={"save_steps": 2})


def test_activations_can_be_computed_twice(finetune, tiny_model):
    once = finetune(tiny_model, "once", lora_dropout=0.0)
    twice = finetune(tiny_model, "twice", {"gradient_checkpointing": True}, lora_dropout=0.0)
    assert twice.data["tuning"]["checkpointing"] and not once.data["tuning"]["checkpointing"]
    assert [loss for _, loss in twice.data["tuning"]["loss"]] == pytest.approx(
        [loss for _, loss in once.data["tuning"]["loss"]]
    )


def test_rows_held_out_decide_the_verdict(finetune, tiny_model, tmp_path):
    assert finetune(tiny_model, "share", eval_dataset_size=0.3).data["tuning"]["held_out"]["rows"] == 9
    none = finetune(tiny_model, "none", eval_dataset_size=0.0)
    assert none.data["verdict"] == "unverified" and "no rows were held out" in none.data["reasons"][0]
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "#" * 60, "response": "%" * 60}) + "\n")  # nothing like what is learned
    worse = finetune(tiny_model, "worse", {"learning_rate": 0.05}, eval_files=(str(other),))
    assert worse.exit_code == 3 and "training did not help" in worse.data["reasons"][0]


def test_rows_of_their_own_are_measured(finetune, tiny_model, travel):
    report = finetune(tiny_model, eval_files=(str(travel),))
    assert report.data["tuning"]["held_out"]["rows"] == 30 and report.data["tuning"]["rows"] == 30


def test_long_rows_are_cut_counted_and_said(finetune, tiny_model, make_model):
    report = finetune(tiny_model, max_seq_len=40)
    assert report.data["tuning"]["truncated_rows"] == 30
    assert any("30 rows were longer" in note for note in report.data["source"]["notes"])
    short = make_model("short", max_position_embeddings=40)
    assert finetune(short, "short-tuned").data["tuning"]["truncated_rows"] == 30


def test_modules_can_be_trained_whole(finetune, make_model):
    report = finetune(make_model("untied", tie_word_embeddings=False, tensors=_untied()), modules_to_save=("lm_head",))
    assert any(name.endswith("lm_head.weight") for name in tensors(report))


def _untied():
    from tests.conftest import weights

    found = weights()
    return {**found, "lm_head.weight": found["model.embed_tokens.weight"][::-1].copy()}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"target_modules": ("o_proj", "qkv_proj")}, "has no module 'qkv_proj'; it has .*q_proj", "_proj"),
        ({"modules_to_save": ("lm_heads",)}, "has no module 'lm_heads'", "lm_head"),
        ({"method": "loha", "lora_dropout": 0.1}, "lora_dropout has no effect with loha", "rank_dropout"),
        ({"double_quant": False}, "double_quant has no effect with lora", "qlora"),
        ({"lora_r": 0}, "lora_r is 0", ""),
        ({"torch_dtype": "float16"}, "float16 has no products on a CPU", "bfloat16"),
        ({"training_args": {"learnin_rate": 1.0}}, "no training argument 'learnin_rate'", "learning_rate"),
        ({"torch_dtype": "float32", "training_args": {"bf16": True}}, "ask for different types", ""),
        ({"text_template": "{prompt} {answer}"}, "wants the fields prompt, answer; answer not among", "text_template"),
        ({"eval_dataset_size": 40}, "40 rows are to be held out, and the data has 30", "eval_dataset_size"),
        ({"eval_dataset_size": 0.5, "eval_files": ("x.jsonl",)}, "x.jsonl does not exist", ""),
    ],
)
def test_what_cannot_be_done_is_refused(options, message, hint, finetune, tiny_model):
    with pytest.raises(coldpress.ColdpressError, match=message) as caught:
        finetune(tiny_model, **options)
    assert hint in (caught.value.hint or "") and caught.value.exit_code == 2


def test_methods_that_quantize_refuse_a_quantized_base(finetune, make_model, tmp_path):
    packed = pack_folder(make_model("source"), tmp_path, "compressed-tensors", lambda module: GRID)
    with pytest.raises(
        coldpress.ColdpressError, match="is quantized already, and loftq quantizes the base itself"
    ) as caught:
        finetune(packed.folder, method="loftq")
    assert "--method lora" in caught.value.hint


def test_qlora_without_bitsandbytes_is_refused(finetune, tiny_model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(coldpress.ColdpressError, match="qlora needs bitsandbytes, which is not installed") as caught:
        finetune(tiny_model, method="qlora")
    assert "pip install bitsandbytes" in caught.value.hint and "--method lora" in caught.value.hint


def test_loftq_begins_nearer_to_the_source_than_rounding_alone(finetune, tiny_model, tmp_path):
    one = {"max_steps": 1, "learning_rate": 1e-9}
    finetune(tiny_model, "loftq", one, method="loftq", lora_r=16, loftq_iter=3, lora_alpha=32.0)
    base, stored = load_base(tmp_path / "loftq/model", torch.float32), load_file(tiny_model / "model.safetensors")
    adapter = load_file(tmp_path / "loftq/adapter/adapter_model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        rounded = base.get_parameter(f"{name}.weight")
        down, up = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        missing = stored[f"{name}.weight"] - rounded
        left = missing - 2 * up @ down
        assert 0 < left.norm() < 0.9 * missing.norm()
    assert "quantization_config" in json.loads((tmp_path / "loftq/model/config.json").read_text())


def test_conversations_are_trained_on_answers_alone(finetune, tiny_model, tmp_path):
    assert "assistant" in CHAT
    file = tmp_path / "chats.jsonl"
    chats = [
        [{"role": "user", "content": f"town {n}"}, {"role": "assistant", "content": f"see the tower {n}"}]
        for n in range(25)
    ]
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    options = {"data_files": (str(file),), "text_template": None, "use_chat_template": True}
    assert finetune(tiny_model, "whole", **options).exit_code == 0
    assert finetune(tiny_model, "answers", **options, answers_only=True).exit_code == 0
