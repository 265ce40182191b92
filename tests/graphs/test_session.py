"""ONNX models of any kind, opened with their session options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from coldpress.errors import ColdpressError
from coldpress.graphs.session import Session, session_options
from coldpress.target import Target
from tests.tiny_graphs import OPSET, write_linear, write_text_classifier

TARGET = Target(threads=1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text_classifier(tmp_path / "text", np.arange(20, dtype=np.float32).reshape(10, 2))


def test_outputs_come_by_name_and_what_follows_from_the_tokens_is_added(text):
    session = Session(text, TARGET)
    found = session.run({"input_ids": np.array([[1, 2]]), "token_type_ids": np.zeros((1, 2))})
    assert found["logits"].tolist() == [[3, 4]]
    masked = session.run({"input_ids": np.array([[1, 2]], np.int32), "attention_mask": np.array([[1, 0]])})
    assert masked["logits"].tolist() == [[2, 3]], "other whole numbers are made the graph's"


def test_a_step_does_the_same_work_bound_or_not(text):
    session = Session(text, TARGET)
    inputs = {"input_ids": np.array([[1, 2]])}
    for io_binding in (False, True):
        step = session.step(inputs, io_binding)
        step()
        step()


def test_positions_count_without_padding_and_caches_are_empty(tmp_path):
    ids, mask, places = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"])
        for name in ("input_ids", "attention_mask", "position_ids")
    )
    cache = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["N", 2, "P", 4])
    outputs = [
        helper.make_tensor_value_info("places", TensorProto.INT64, ["N", "T"]),
        helper.make_tensor_value_info("length", TensorProto.INT64, [4]),
    ]
    nodes = [
        helper.make_node("Identity", ["position_ids"], ["places"]),
        helper.make_node("Shape", ["past_key_values.0.key"], ["length"]),
    ]
    graph = helper.make_graph(nodes, "decoder", [ids, mask, places, cache], outputs)
    onnx.save(helper.make_model(graph, opset_imports=OPSET, ir_version=9), str(tmp_path / "model.onnx"))
    session = Session(tmp_path, TARGET)
    found = session.run({"input_ids": np.ones((1, 4)).astype(int), "attention_mask": np.array([[0, 0, 1, 1]])})
    assert found["places"].tolist() == [[0, 0, 0, 1]]
    assert found["length"].tolist() == [1, 2, 0, 4]


def test_inputs_that_do_not_fit_are_named(tmp_path, text):
    session = Session(text, TARGET)
    with pytest.raises(
        ColdpressError, match=r"gives 'pixel_values', which is no input of .*; its inputs: input_ids, attention_mask"
    ):
        session.run({"pixel_values": np.zeros((1, 3))})
    with pytest.raises(ColdpressError, match=r"has an input 'input_ids', which the data does not give"):
        session.run({"attention_mask": np.ones((1, 3))})
    with pytest.raises(ColdpressError, match="'input_ids' takes int64; the data gives float32"):
        session.run({"input_ids": np.zeros((1, 3), np.float32)})
    with pytest.raises(ColdpressError, match="ONNX Runtime cannot run"):
        session.run({"input_ids": np.array([[99]])})


def test_a_single_input_takes_a_single_array_of_any_name(tmp_path):
    session = Session(write_linear(tmp_path, np.eye(2), ["N", 2]), TARGET)
    assert session.run({"anything": np.array([[1.0, 2.0]])})["logits"].tolist() == [[1, 2]]


def test_the_graph_may_have_any_name_if_it_is_the_only_one(tmp_path, text):
    (text / "model.onnx").rename(text / "encoder.onnx")
    assert Session(text, TARGET).file.name == "encoder.onnx"
    assert Session(text / "encoder.onnx", TARGET).outputs == ["logits"]
    (text / "other.onnx").write_bytes((text / "encoder.onnx").read_bytes())
    with pytest.raises(ColdpressError, match=r"no model.onnx in .*; found: encoder.onnx, other.onnx"):
        Session(text, TARGET)


def test_options_are_those_of_the_folder_and_then_those_given(text):
    options = {
        "graph_optimization_level": "basic",
        "intra_op_num_threads": 2,
        "inter_op_num_threads": 3,
        "execution_mode": "parallel",
        "config_entries": {"session.intra_op.allow_spinning": "0"},
    }
    made = session_options(options)
    assert made.intra_op_num_threads == 2 and made.inter_op_num_threads == 3
    assert made.graph_optimization_level.name == "ORT_ENABLE_BASIC" and made.execution_mode.name == "ORT_PARALLEL"
    assert made.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    (text / "session_options.json").write_text(json.dumps(options))
    assert Session(text, TARGET).run({"input_ids": np.array([[1]])})["logits"].tolist() == [[2, 3]]
    with pytest.raises(ColdpressError, match="there is no 'threads'"):
        Session(text, TARGET, {"threads": 1})


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"graph_optimization_levl": "all"}, "did you mean 'graph_optimization_level'"),
        ({"graph_optimization_level": "everything"}, "known: all, basic"),
        ({"execution_mode": "paralel"}, "did you mean 'parallel'"),
    ],
)
def test_options_that_onnx_runtime_does_not_have_are_refused(options, hint):
    with pytest.raises(ColdpressError) as caught:
        session_options(options)
    assert hint in caught.value.hint


def test_a_device_that_is_not_here_is_said(text):
    with pytest.raises(ColdpressError, match="QNNExecutionProvider is not on this machine"):
        Session(text, Target("npu", "QNNExecutionProvider"))


@pytest.mark.parametrize("said", [{}, {"config_entries": {"session.intra_op.allow_spinning": "1"}}])
def test_threads_of_what_is_not_timed_sleep_when_they_wait_unless_the_model_says_otherwise(text, said, monkeypatch):
    import onnxruntime

    told = []

    class Watched(onnxruntime.InferenceSession):
        def __init__(self, path, session_options, **more):
            told.append(session_options.get_session_config_entry("session.intra_op.allow_spinning"))
            super().__init__(path, session_options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)
    Session(text, TARGET, said)
    assert told == ["1" if said else "0"]


def test_what_is_timed_is_opened_as_an_app_opens_it(text, monkeypatch):
    import onnxruntime

    opened = []
    plain = onnxruntime.InferenceSession

    def open_and_keep(*given, **more):
        opened.append(plain(*given, **more))
        return opened[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_and_keep)
    Session(text, TARGET, is_timed=True)
    with pytest.raises(RuntimeError, match="allow_spinning"):
        opened[0].get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
