"""Data of a workflow, named by its metrics."""

from __future__ import annotations

import pytest

from coldpress.errors import ColdpressError
from coldpress.workflow.file import load_workflow

DATA = {"some": {"type": "synthetic", "parameters": {"max_samples": 2}}}


def test_a_name_becomes_the_data_itself():
    workflow = load_workflow(
        {"model": "m", "data": DATA, "metrics": [{"type": "latency", "parameters": {"data": "some"}}]}
    )
    assert workflow.metrics[0].parameters["data"] == DATA["some"]
    assert workflow.metrics[0].make().data.make().max_samples == 2


def test_data_may_stand_where_it_is_used():
    inline = {"type": "synthetic", "parameters": {}}
    workflow = load_workflow({"model": "m", "metrics": [{"type": "latency", "parameters": {"data": inline}}]})
    assert workflow.metrics[0].make().data.type == "synthetic"


@pytest.mark.parametrize(
    ("workflow", "words", "hint"),
    [
        (
            {"data": DATA, "metrics": [{"type": "latency", "parameters": {"data": "somme"}}]},
            "no data 'somme'",
            "did you mean 'some'",
        ),
        (
            {"metrics": [{"type": "latency", "parameters": {"data": "some"}}]},
            "no data 'some'",
            "describe it under 'data'",
        ),
        ({"data": {"x": {"type": "synthetc"}}}, "unknown kind of data 'synthetc'", "did you mean 'synthetic'"),
        ({"data": {"x": {"type": "synthetic", "parameters": {"batchsize": 1}}}}, "no 'batchsize'", "batch_size"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(workflow, words, hint):
    with pytest.raises(ColdpressError, match=words) as caught:
        load_workflow({"model": "m", **workflow})
    assert hint in caught.value.hint
