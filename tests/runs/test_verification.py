"""What a verdict says where there is nothing to compare a model with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coldpress import report
from coldpress.errors import ColdpressError
from coldpress.jobs.store import Store
from coldpress.jobs.system import Executor, System
from coldpress.models.model import Model
from coldpress.models.provenance import HeldOutLoss, Provenance, Tuning
from coldpress.runs.verification import Origin, check_request, verify
from coldpress.workflow import Verify, Workflow

HELD_OUT = HeldOutLoss(rows=8, tokens=100, loss_before=4.0, loss_after=3.0)


@pytest.fixture
def judged(tmp_path):
    """``judged(model, origin)``; nothing is run for these."""
    return lambda model, origin: verify(model, origin, Workflow("m"), Executor(System(), Store(tmp_path)))


@pytest.mark.parametrize("kind", ["hf", "adapter"])
def test_a_model_is_not_verified_against_itself(judged, tmp_path, kind):
    model = Model(tmp_path, kind, "key")
    origin = Origin(model) if kind == "hf" else Origin(Model(tmp_path, "hf", "base"), model)
    found = judged(model, origin)
    assert found.verdict == "unverified" and "compared with nothing itself" in found.reasons[0]


def test_a_trained_model_is_judged_by_rows_held_out_and_a_merged_one_says_when(judged, tmp_path):
    trained = Model(tmp_path, "adapter", "key", Provenance(tuning=Tuning("lora", HELD_OUT)))
    found = judged(trained, Origin(Model(tmp_path, "hf", "base"), trained))
    assert found.verdict == "fine-tuned" and "merged" not in found.reasons[0]
    merged = replace(trained, format="hf")
    assert judged(merged, Origin(merged)).reasons[0].endswith("before the adapter was merged")
    worse = Tuning("lora", replace(HELD_OUT, loss_after=4.5))
    model = replace(trained, provenance=Provenance(tuning=worse))
    assert judged(model, Origin(Model(tmp_path, "hf", "base"), model)).verdict == "worse than tolerance"


def test_the_words_of_a_verdict_say_which_reference_spoke():
    data = {"verdict": "verified", "quality": {"reference": {"says": "transformers 9.9 loaded the source."}}}
    assert report.verdict(data).meaning.endswith("compared with its source. transformers 9.9 loaded the source.")
    assert "9.9" not in report.verdict({**data, "verdict": "unverified"}).meaning


def test_a_budget_that_is_no_number_of_gigabytes_is_refused():
    with pytest.raises(ColdpressError, match="max_memory is -1 GB"):
        check_request(Verify(max_memory=-1.0), Model(Path(), "onnx", "key"))
