"""Rows in sequences: all of them, none cut, little padding, and the same loss as each one alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from coldpress.tune.loss import SummedLoss
from coldpress.tune.network import load_base
from coldpress.tune.packing import Packer, attention_share
from coldpress.tune.rows import NOT_SCORED
from coldpress.tune.training import keeps_rows_apart
from tests.architectures import checkpoint
from tests.tune.conftest import make_rows


def packer(**changes):
    return Packer(**{"most_tokens": 64, "tokens_at_once": 128, "attention_share": 1e-3, **changes})


def found_rows(part):
    """The ids of each row of a part, told by its positions; padding is a row without targets."""
    rows = []
    for ids, places, targets in zip(part["input_ids"], part["position_ids"], part["labels"], strict=True):
        starts = [*torch.nonzero(places == 0).flatten().tolist(), len(ids)]
        for start, stop in pairwise(starts):
            if (targets[start:stop] != NOT_SCORED).any():
                rows.append((ids[start:stop].tolist(), targets[start:stop].tolist()))
    return rows


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("lengths", [(3, 60, 17, 25, 9, 31, 2), (200, 5, 5), (2,), (40,) * 9])
def test_every_row_is_there_once_and_whole(lengths, joins):
    rows = make_rows(*lengths)
    parts = packer(joins=joins)(rows.rows)["parts"]
    found = sorted(row for part in parts for row in found_rows(part))
    assert found == sorted((row.ids.tolist(), row.targets.tolist()) for row in rows)


def test_no_sequence_and_no_part_is_longer_than_allowed_unless_a_row_is():
    rows = make_rows(*np.random.default_rng(1).integers(2, 60, 40))
    for part in packer()(rows.rows)["parts"]:
        sequences, tokens = part["input_ids"].shape
        assert tokens <= 64 and sequences * tokens <= 128
    [longest] = packer()(make_rows(300).rows)["parts"]
    assert longest["input_ids"].shape == (1, 300)


def test_there_is_little_padding():
    rows = make_rows(*np.random.default_rng(2).integers(5, 50, 64))
    parts = packer(most_tokens=256, tokens_at_once=1024)(rows.rows)["parts"]
    taken = sum(part["input_ids"].numel() for part in parts)
    assert taken <= 1.05 * rows.tokens


def test_where_attention_is_dear_rows_are_not_joined():
    parts = packer(attention_share=10.0, tokens_at_once=1024)(make_rows(*(20,) * 4).rows)["parts"]
    assert [part["input_ids"].shape for part in parts] == [(4, 20)]


def losses_alone(model, rows):
    """What transformers itself says: the sum of the losses of each row, run by itself."""
    found = []
    for row in rows:
        ids, targets = torch.from_numpy(row.ids).long()[None], torch.from_numpy(row.targets).long()
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=NOT_SCORED))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "gpt2", "qwen3", "granite"])
def test_a_packed_row_has_the_loss_that_it_has_alone(name, tmp_path):
    """With transformers' own forward: so it tells rows apart by their positions, on the CPU too, with this version."""
    model = load_base(checkpoint(name, tmp_path / name).folder, torch.float32).eval()
    rows = make_rows(7, 19, 4, 11, answers_from=3)
    alone = losses_alone(model, rows)
    loss = SummedLoss(model, torch.float32)
    assert keeps_rows_apart(loss)
    loss.install()
    [part] = packer(attention_share=attention_share(model))(rows.rows)["parts"]
    assert part["input_ids"].shape[0] < len(rows)
    with torch.no_grad():
        torch.testing.assert_close(model(**part).loss, alone.sum(), rtol=1e-5, atol=1e-4)
        for row, expected in zip(rows, alone, strict=True):  # and row by row, the others' targets taken away
            only = {**part, "labels": _only(part, row)}
            torch.testing.assert_close(model(**only).loss, expected, rtol=1e-5, atol=1e-4)


def _only(part, row):
    """The targets of one row of a part alone."""
    kept = torch.full_like(part["labels"], NOT_SCORED)
    ids = torch.from_numpy(row.ids).long()
    for place, sequence in enumerate(part["input_ids"]):
        for start in torch.nonzero(part["position_ids"][place] == 0).flatten().tolist():
            if torch.equal(sequence[start : start + len(ids)], ids):
                kept[place, start : start + len(ids)] = part["labels"][place, start : start + len(ids)]
    assert (kept != NOT_SCORED).sum() == (row.targets != NOT_SCORED).sum()
    return kept


def test_a_network_that_mixes_rows_is_noticed(tiny_model):
    model = load_base(tiny_model, torch.float32)
    loss = SummedLoss(model, torch.float32)
    body = model.model.forward
    model.model.forward = lambda input_ids, position_ids, **more: body(
        input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **more
    )
    loss.__dict__["_takes_positions"] = True
    assert not keeps_rows_apart(loss)


def test_rounded_products_are_not_taken_for_mixed_rows(tiny_model):
    """As SmolLM2's in bfloat16: joined rows are a tenth of a spread off by rounding alone, and a whole one when they
    are one text."""
    loss = SummedLoss(load_base(tiny_model, torch.float32), torch.float32)
    alone, noise = torch.randn(1, 12, 96), torch.randn(1, 12, 96)

    def logits(ids, places):
        if ids.shape[1] == 12:
            return alone
        off = 1.0 if places[0, 12] == 12 else 0.1
        return torch.cat([alone, alone + off * noise], dim=1)

    loss.logits = logits
    assert keeps_rows_apart(loss)
