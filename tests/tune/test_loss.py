"""The loss without logits: equal to transformers' own, gradients too, in chunks that never make up the whole."""

from __future__ import annotations

import pytest
import torch

from coldpress.tune import loss as loss_module
from coldpress.tune.adapters import Adapter
from coldpress.tune.loss import SummedLoss
from coldpress.tune.network import load_base
from coldpress.tune.packing import Packer
from coldpress.tune.rows import NOT_SCORED
from tests.architectures import checkpoint
from tests.tune.conftest import make_rows

PACKER = Packer(64, 256, 1e-3)


def tuned(folder, **options):
    """A network with an adapter that does something."""
    torch.manual_seed(0)
    wrapped = Adapter(rank=4, dropout=0.0, **options).put_on(load_base(folder, torch.float32))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return wrapped


def plain_loss(wrapped, part):
    """The sum of losses from whole logits."""
    logits = wrapped(input_ids=part["input_ids"], position_ids=part["position_ids"], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), part["labels"].flatten(), reduction="sum", ignore_index=NOT_SCORED
    )


def gradients(wrapped, loss):
    wrapped.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in wrapped.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize("saved", [(), ("lm_head",)], ids=["frozen head", "trained head"])
def test_loss_and_gradients_are_those_of_whole_logits(name, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", 1024)  # a few places at once
    untied = {} if name == "gpt2" or not saved else {"tie_word_embeddings": False}
    wrapped = tuned(checkpoint(name, tmp_path / name, **untied).folder, modules_to_save=saved)
    [part] = PACKER(make_rows(12, 30, 9, answers_from=4).rows)["parts"]
    expected = plain_loss(wrapped, part)
    theirs = gradients(wrapped, expected)
    SummedLoss(wrapped.get_base_model(), torch.float32).install()
    found = wrapped(**part).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for parameter, gradient in gradients(wrapped, found).items():
        torch.testing.assert_close(gradient, theirs[parameter], rtol=1e-3, atol=1e-5)


def test_logits_never_exist_as_a_whole(tiny_model, monkeypatch):
    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", 512 * 8)
    wrapped = tuned(tiny_model)
    network = wrapped.get_base_model()
    seen = []
    network.lm_head.register_forward_hook(lambda module, args, logits: seen.append(logits.numel()))
    SummedLoss(network, torch.float32).install()
    [part] = PACKER(make_rows(40, answers_from=10).rows)["parts"]
    wrapped(**part).loss.backward()
    assert max(seen) <= 512 * 8 and sum(seen) == 512 * 30


def test_smoothing_is_pytorchs(tiny_model):
    wrapped = tuned(tiny_model)
    [part] = PACKER(make_rows(20).rows)["parts"]
    logits = wrapped(input_ids=part["input_ids"], use_cache=False).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, part["labels"][0], reduction="sum", label_smoothing=0.1)
    SummedLoss(wrapped.get_base_model(), torch.float32, smoothing=0.1).install()
    torch.testing.assert_close(wrapped(**part).loss, expected)


def test_products_in_bfloat16_leave_adapters_in_float32(tiny_model):
    torch.manual_seed(0)
    wrapped = Adapter(rank=4, dropout=0.0).put_on(load_base(tiny_model, torch.bfloat16))
    exact = plain_loss(tuned(tiny_model), part := PACKER(make_rows(20).rows)["parts"][0])
    SummedLoss(wrapped.get_base_model(), torch.bfloat16).install()
    found = wrapped(**part).loss
    assert found.dtype == torch.float32
    found.backward()
    trained = [one for one in wrapped.parameters() if one.requires_grad]
    assert {one.dtype for one in trained} == {torch.float32} and all(one.grad is not None for one in trained)
    assert abs(float(found) - float(exact)) < 0.1 * float(exact)
