"""What the written graph promises to runtimes, whatever the architecture."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest

from coldpress.errors import ColdpressError
from coldpress.graphs.kernels import Encoding, fitting_block
from coldpress.models.model import Model
from coldpress.parts import Context, refuse
from coldpress.passes.press import Press
from coldpress.rules.block_quantized_products import slow_encoding
from coldpress.target import Target


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pressed")
    Press().run(Model(tiny_model, "hf", "tiny"), Context(folder))
    return folder


@pytest.fixture(scope="module")
def graph(folder):
    return onnx.load(folder / "model.onnx", load_external_data=False)


def test_a_decoder_needs_no_newer_runtime_than_opset_21(graph):
    assert graph.ir_version == 10
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 21, "com.microsoft": 1}
    assert not graph.functions


def test_every_linear_layer_is_quantized_and_siblings_are_joined(graph):
    products = [node.name for node in graph.graph.node if node.op_type == "MatMulNBits"]
    assert not [node.name for node in graph.graph.node if node.op_type in ("MatMul", "Transpose")]
    assert products == [
        *(
            f"model.layers.{layer}.{name}"
            for layer in range(2)
            for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
        ),
        "lm_head",
    ]


def test_a_tied_embedding_is_stored_once(graph, folder):
    places = {}
    for tensor in graph.graph.initializer:
        if tensor.external_data:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            places.setdefault(int(facts["offset"]), []).append((tensor.name, int(facts["length"])))
    shared = [sorted(name for name, _ in found) for found in places.values() if len(found) > 1]
    assert ["model.embed_tokens.weight.codes", "model.embed_tokens.weight.codes.lookup"] in shared
    ends = max(offset + found[0][1] for offset, found in places.items())
    assert ends == (folder / "model.onnx.data").stat().st_size


def test_no_kernel_falls_off_a_cliff(graph):
    for node in graph.graph.node:
        if node.op_type == "MatMulNBits":
            facts = {attribute.name: attribute.i for attribute in node.attribute}
            refuse(slow_encoding(Encoding(facts["bits"], facts["block_size"], False), facts["accuracy_level"], "cpu"))
            zero_points = node.input[3] if len(node.input) > 3 else ""
            kinds = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
            assert not zero_points or kinds[zero_points] == onnx.TensorProto.UINT8
            assert len(node.input) < 5 or not node.input[4]  # g_idx


@pytest.mark.parametrize(("bits", "block", "level"), [(8, 32, 0), (2, 16, 4), (2, 256, 4), (2, 64, 1), (4, 48, 4)])
def test_slow_configurations_are_refused_with_a_fast_one(bits, block, level):
    with pytest.raises(ColdpressError) as caught:
        refuse(slow_encoding(Encoding(bits, block, True), level, "cpu"))
    assert "use" in caught.value.hint


def test_the_largest_block_that_divides_is_taken():
    assert [fitting_block(columns, 128) for columns in (1024, 576, 96, 80, 100)] == [128, 64, 32, 16, 128]


def test_genai_settings_follow_the_source(folder):
    settings = json.loads((folder / "genai_config.json").read_text())
    model, search = settings["model"], settings["search"]
    assert (model["type"], model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == ("llama", 0, 1, 1)
    assert model["decoder"]["num_hidden_layers"] == 2 and model["decoder"]["head_size"] == 16
    assert search["past_present_share_buffer"] and not search["do_sample"]


def test_the_tokenizer_is_one_that_older_runtimes_know(make_model, tmp_path):
    source = make_model()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "TokenizersBackend"}))
    output = tmp_path / "pressed"
    output.mkdir()
    Press(algorithm="rtn").run(Model(source, "hf", "x"), Context(output))
    written = json.loads((output / "tokenizer_config.json").read_text())
    assert {**written, **config, "tokenizer_class": "PreTrainedTokenizerFast"} == written
    assert json.loads((output / "special_tokens_map.json").read_text())["eos_token"] == "<|end|>"


def test_gpu_graphs_hold_halves_and_symmetric_codes(tiny_model, tmp_path):
    Press().run(Model(tiny_model, "hf", "x"), Context(tmp_path, Target("gpu", "CUDAExecutionProvider")))
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert graph.output[0].type.tensor_type.elem_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert products and all(len(node.input) == 3 for node in products)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[node.input[2]] for node in products} == {onnx.TensorProto.FLOAT16}


class TestScales:
    """Stored as halves, and cast when the graph is loaded."""

    def test_they_are_halves_and_every_kernel_gets_them_as_floats(self, graph):
        kinds = {tensor.name: tensor.data_type for tensor in graph.graph.initializer if tensor.name.endswith(".scales")}
        assert len(kinds) == 9 and set(kinds.values()) == {onnx.TensorProto.FLOAT16}
        casts = {node.output[0] for node in graph.graph.node if node.op_type == "Cast" and node.input[0] in kinds}
        readers = [node for node in graph.graph.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
        assert len(readers) == 10, "the tied embedding shares those of the head"
        assert {node.input[2] for node in readers} == casts

    def test_the_runtime_folds_the_casts_so_that_what_runs_is_the_same(self, folder, tmp_path):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        loaded = onnx.load(tmp_path / "loaded.onnx", load_external_data=False).graph
        kinds = {tensor.name: tensor.data_type for tensor in loaded.initializer}
        products = [node for node in loaded.node if node.op_type == "MatMulNBits"]
        assert products and {kinds[node.input[2]] for node in products} == {onnx.TensorProto.FLOAT}

    def test_a_graph_can_have_them_as_floats(self, tiny_model, folder, tmp_path):
        Press(scale_dtype="float32").run(Model(tiny_model, "hf", "tiny"), Context(tmp_path))
        kinds = {one.name: one.data_type for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
        assert {kind for name, kind in kinds.items() if name.endswith(".scales")} == {onnx.TensorProto.FLOAT}
        halves, floats = ((place / "model.onnx.data").stat().st_size for place in (folder, tmp_path))
        assert halves < 0.93 * floats

    def test_where_they_have_no_effect_they_are_refused(self, tiny_model):
        model = Model(tiny_model, "hf", "tiny")
        with pytest.raises(ColdpressError, match="scale_dtype has no effect on CUDAExecutionProvider"):
            Press(scale_dtype="float16").check(model, Target("gpu", "CUDAExecutionProvider"))
        with pytest.raises(ColdpressError, match="scale_dtype has no effect with precision fp32"):
            Press(precision="fp32", scale_dtype="float16").check(model, Target())
