"""What is known of a model survives JSON, and what another version wrote is not taken for it."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from coldpress.jobs.job import Job, execute, lookup
from coldpress.jobs.store import Store
from coldpress.models.model import Model
from coldpress.models.provenance import (
    CalibrationRecord,
    HeadRecord,
    HeldOutLoss,
    LatticeRecord,
    Provenance,
    QuantizedLayer,
    SessionChoice,
    Source,
    Timing,
    TriedOptions,
    Tuning,
    WrittenAdapter,
)

LAYER = QuantizedLayer("model.layers.0.mlp.up_proj", "linear", 4, 32, False, "gptq", 0.1, 1024, 0.02, 0.05, 64, 0.01)
WHOLE = Provenance(
    Source("org/model", "hub", "main", "LlamaForCausalLM", 1000, {"Q4_0": 7, "F32": 2}, "4 bits"),
    precision="int4",
    layers=(
        LAYER,
        replace(LAYER, name="lm_head", relative_error=0.0, fallback="zeros", lattice=LatticeRecord(4, 32, False, 0.25)),
    ),
    calibration=CalibrationRecord("a text", 2, 64, "abc", (LAYER,), HeadRecord(0.01, 0.2, 0.02, 4)),
    rotation="quarot",
    tuning=Tuning("lora", HeldOutLoss(8, 100, 4.0, 3.0), rows=72, step_seconds=(0.5, 0.25), loss=((1, 4.0), (2, 3.5))),
    attached=("travel",),
    adapters=(WrittenAdapter("travel", "travel.onnx_adapter", (4, 8), 14, 4096),),
    is_merged=True,
    session=SessionChoice({"intra_op_num_threads": 2}, (TriedOptions({"intra_op_num_threads": 1}, 1.5, 0.1, 3),)),
    timings=(Timing("quantize", 1.5),),
    remarks=("mind the gap",),
    extra={"crush": {"bits": 2, "of": [1, 2.5, None]}},
)


def test_everything_survives_json(tmp_path):
    for entry in fields(Provenance):
        assert getattr(WHOLE, entry.name) != getattr(Provenance(), entry.name), f"{entry.name} is not tried here"
    job = Job("pass", "press", {}, Model(tmp_path, "hf", "key", WHOLE), source=Model(tmp_path, "hf", "other"))
    again = Job.from_json(json.loads(json.dumps(job.to_json())))
    assert again == job and again.model.provenance == WHOLE


def test_a_stored_result_of_another_version_is_made_again(tmp_path, lab_parts):
    """Such a record has facts that nobody knows any more, or none that are needed now."""
    store, source = Store(tmp_path / "cache"), tmp_path / "source"
    source.mkdir()
    (source / "settings.json").write_text("{}")
    job = Job("pass", "crush", {"bits": 4}, Model(source, "onnx", "key"))
    made = execute(job, store)
    assert lookup(job, store) == replace(made, cached=True)
    [record] = store.root.glob("results/*/*/record.json")
    stored = json.loads(record.read_text())
    for other in ({"provenance": {"told_by_the_stars": True}}, {"notes": {"precision": "int4"}, "provenance": None}):
        record.write_text(json.dumps({**stored, "value": {**stored["value"], **other}}))
        assert lookup(job, store) is None
        assert execute(job, store).model == made.model


def test_a_part_of_others_keeps_what_it_knows_under_its_name(tmp_path, lab_parts):
    source = tmp_path / "source"
    source.mkdir()
    store, known = Store(tmp_path / "cache"), Provenance(extra={"other": 1})
    job = Job("pass", "crush", {"bits": 2}, Model(source, "onnx", "key", known))
    assert execute(job, store).model.provenance.extra == {"other": 1, "crush": {"bits": 2}}


def test_a_layer_is_exact_when_nothing_was_lost():
    assert not LAYER.is_exact and replace(LAYER, relative_error=0.0).is_exact


def test_a_remark_changes_nothing_else():
    further = WHOLE.remarked("and the other one")
    assert further == replace(WHOLE, remarks=("mind the gap", "and the other one"))
