"""Passes: every name that Olive has had leads to one of ours, or says what to use."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

from coldpress import parts
from coldpress.workflow.olive import tables
from coldpress.workflow.olive.converters import CONVERTERS
from tests.workflow.olive.conftest import EVALUATOR, builder

#: passes of Olive 0.11 (its olive_config.json of August 2026) and those that were removed since 0.3
NAMES = [
    "AddOliveMetadata",
    "AimetQuantization",
    "AppendPrePostProcessingOps",
    "AutoAWQQuantizer",
    "AutoClip",
    "CaptureLayerAnnotations",
    "CaptureSplitInfo",
    "ComposeOnnxModels",
    "ConvertHfToGGUF",
    "DoRA",
    "DynamicToFixedShape",
    "EPContextBinaryGenerator",
    "ExtractAdapters",
    "GenAIModelExporter",
    "Gptq",
    "GptqModel",
    "GptqQuantizer",
    "GraphSurgeries",
    "IncDynamicQuantization",
    "IncQuantization",
    "IncStaticQuantization",
    "InputNCHWtoNHWC",
    "InsertBeamSearch",
    "KQuant",
    "LoHa",
    "LoKr",
    "LoRA",
    "LoftQ",
    "MatMulNBitsToQDQ",
    "MergeAdapterWeights",
    "MixedPrecisionOverrides",
    "MobiusBuilder",
    "ModelBuilder",
    "MoEExpertsDistributor",
    "NVModelOptGraphSurgery",
    "NVModelOptQuantization",
    "OnnxBlockWiseRtnQuantization",
    "OnnxBnb4Quantization",
    "OnnxConversion",
    "OnnxDiscrepancyCheck",
    "OnnxDynamicQuantization",
    "OnnxFloatToFloat16",
    "OnnxHqqQuantization",
    "OnnxIODataTypeConverter",
    "OnnxIOFloat16ToFloat32",
    "OnnxKQuantQuantization",
    "OnnxMatMul4Quantizer",
    "OnnxModelOptimizer",
    "OnnxOpVersionConversion",
    "OnnxPeepholeOptimizer",
    "OnnxQuantization",
    "OnnxQuantizationPreprocess",
    "OnnxScriptFusion",
    "OnnxStaticQuantization",
    "OpenVINOConversion",
    "OpenVINOEncapsulation",
    "OpenVINOIoUpdate",
    "OpenVINOOptimumConversion",
    "OpenVINOQuantization",
    "OpenVINOQuantizationWithAccuracy",
    "OpenVINOWeightCompression",
    "OptimumConversion",
    "OptimumMerging",
    "OrtMixedPrecision",
    "OrtPerfTuning",
    "OrtSessionParamsTuning",
    "OrtTransformersOptimization",
    "PyTorchTensorParallel",
    "QLoRA",
    "QNNContextBinaryGenerator",
    "QNNConversion",
    "QNNModelLibGenerator",
    "QNNPreprocess",
    "QairtEncapsulation",
    "QairtGenAIBuilder",
    "QairtMHA2SHA",
    "QairtPipelinePass",
    "QairtPreparation",
    "QuaRot",
    "QuantizationAwareTraining",
    "QuarkQuantization",
    "QuarkQuantizationVitisAI",
    "Rtn",
    "RyzenGenerateModelLLM",
    "SDLoRA",
    "SNPEConversion",
    "SNPEQuantization",
    "SNPEtoONNXConversion",
    "SaveTestModelConfig",
    "SelectiveMixedPrecision",
    "SliceGPT",
    "SparseGPT",
    "SpinQuant",
    "SplitModel",
    "StaticLLM",
    "TorchTRTConversion",
    "VitisAIAddMetaData",
    "VitisAIQuantization",
    "VitisGenerateModelLLM",
    "VitisGenerateModelSD",
]


def test_every_pass_of_olive_is_known():
    assert set(tables.passes()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_becomes_one_of_ours_or_says_what_to_use(name):
    entry = tables.passes()[name]
    ways = [entry.target, entry.which, entry.left_out, entry.instead, entry.joins]
    assert sum(map(bool, ways)) == 1
    assert all(other in NAMES for other in entry.passes.values())


@pytest.mark.parametrize("name", [name for name in NAMES if tables.passes()[name].target])
def test_parameters_become_fields_of_ours(name):
    entry = tables.passes()[name]
    part = parts.find("passes", entry.target)
    fields = {field.name: field for field in dataclasses.fields(part)}
    assert set(entry.fixed) <= set(fields)
    for theirs, known in entry.parameters.items():
        ways = [known.to, known.no_effect, known.refused]
        assert sum(map(bool, ways)) == 1, theirs
        assert not known.converter or known.converter in CONVERTERS
        if known.to and not known.to.startswith("workflow."):
            assert known.to in fields, theirs
            choices = fields[known.to].metadata.get("choices")
            values = [known.values.get(value, value) for value in (*known.values, *known.search)]
            for value in values if choices else ():
                assert isinstance(value, dict) or value in choices, (theirs, value)


def steps(translation):
    return [(step["type"], step.get("parameters", {})) for step in translation.workflow["passes"]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"type": "ModelBuilder", "precision": "int8"}, ("press", {"precision": "int8"})),
        ({"type": "modelbuilder", "config": {"precision": "fp32"}}, ("press", {"precision": "fp32"})),
        (builder(int4_block_size=64), ("press", {"precision": "int4", "block_size": 64})),
        (
            builder(int4_algo_config="k_quant_last"),
            ("press", {"precision": "int4", "algorithm": "kquant", "head_bits": 8}),
        ),
        (
            builder(int4_nodes_to_exclude=["/model/layers.0/attn/q_proj/MatMul"]),
            ("press", {"precision": "int4", "modules_to_not_convert": ["model.layers.0.self_attn.q_proj"]}),
        ),
        ({"type": "Rtn", "bits": 8}, ("quantize", {"algorithm": "rtn", "precision": "int8"})),
        ({"type": "Gptq", "sym": True}, ("quantize", {"algorithm": "gptq", "symmetric": True})),
        (
            {"type": "AutoAWQQuantizer", "config": {"w_bit": 4, "q_group_size": 64, "zero_point": False}},
            ("quantize", {"algorithm": "awq", "precision": "int4", "group_size": 64, "symmetric": True}),
        ),
        (
            {"type": "KQuant", "overrides": {"*.mlp.*": {"bits": 8}}, "modules_to_not_convert": ["lm_head"]},
            (
                "quantize",
                {"algorithm": "kquant", "modules_to_not_convert": ["*lm_head*"], "overrides": ["*.mlp.*=int8"]},
            ),
        ),
        (
            {
                "type": "GptqModel",
                "dynamic": {
                    "-:.*router.*": {},
                    "+:.*lm_head*": {"bits": 8, "sym": True, "group_size": 128, "desc_act": False},
                },
                "modules_to_not_convert": ["gate"],
            },
            (
                "quantize",
                {
                    "algorithm": "gptq",
                    "modules_to_not_convert": ["*gate*", "*router*"],
                    "overrides": ["*lm_head*=int8"],
                },
            ),
        ),
        (
            builder(extra_options={"prune_lm_head": True, "int4_accuracy_level": 4}),
            ("press", {"precision": "int4", "accuracy_level": 4, "logits": "last"}),
        ),
        (
            {"type": "OnnxFloatToFloat16", "keep_io_types": ["logits"]},
            ("onnx_float_to_float16", {"keep_io_types": ["logits"]}),
        ),
        ({"type": "QuaRot"}, ("rotate", {})),
        ({"type": "SpinQuant", "config": {"a_bits": 16}}, ("rotate", {"rotation": "spinquant"})),
        ({"type": "OnnxConversion", "config": {"torch_dtype": "float32"}}, ("press", {"precision": "fp32"})),
        ({"type": "OptimumConversion", "fp16": False}, ("press", {"precision": "fp32"})),
        (
            {"type": "OnnxMatMul4Quantizer", "config": {"block_size": 32, "is_symmetric": True, "algorithm": "HQQ"}},
            ("quantize_onnx", {"algorithm": "hqq", "block_size": 32, "symmetric": True}),
        ),
    ],
    ids=str,
)
def test_parameters_and_their_values_are_translated(translated, config, expected):
    assert steps(translated(passes={"one": config})) == [expected]


@pytest.mark.parametrize(
    ("config", "place", "words"),
    [
        ({"type": "ModelBuildr"}, "passes.one.type", "ModelBuilder"),
        ({"type": "ModelBuilder", "config": {"precison": "int4"}}, "passes.one.config.precison", "precision"),
        (builder(precision="int5"), "passes.one.config.precision", "int"),
        (builder(use_qdq=True), "passes.one.config.use_qdq", "MatMulNBits"),
        (builder(int4_block_size=48), "passes.one.config.int4_block_size", "32, 64"),
        (
            builder(extra_options={"exclude_embed": True}),
            "passes.one.config.extra_options.exclude_embed",
            "exclude_embeds",
        ),
        ({"type": "Gptq", "bits": 5}, "passes.one.bits", "2, 3, 4, 8"),
        (
            {"type": "GptqModel", "dynamic": {"+:.*gate.*": {"bits": 8, "group_size": 64}}},
            "passes.one.dynamic",
            "other bits",
        ),
        ({"type": "GptqModel", "dynamic": {"+:.*[0-9].*": {"bits": 8}}}, "passes.one.dynamic", "glob"),
        ({"type": "Gptq", "group_size": -1}, "passes.one.group_size", "groups of 16 to 256"),
        ({"type": "Gptq", "group_size": [32, 64]}, "passes.one.group_size", "search_strategy"),
        ({"type": "Gptq", "data_config": "nowhere"}, "passes.one.data_config", "data_configs"),
        ({"type": "SparseGPT"}, "passes.one", "quantize"),
        ({"type": "SplitModel"}, "passes.one", "one graph"),
        ({"type": "KQuant", "overrides": {"re:.*": {"bits": 8}}}, "passes.one.overrides", "glob"),
        ({**builder(), "host": "elsewhere"}, "passes.one.host", "engine's host"),
        ({**builder(), "evaluator": "mine"}, "passes.one.evaluator", "engine's evaluator"),
        ({**builder(), "user_script": "mine.py"}, "passes.one.user_script", "no user scripts"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_refused_with_a_hint(refused, config, place, words):
    assert words in refused(place, passes={"one": config}).hint


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"type": "LoRA", "r": 16, "alpha": 32, "target_modules": None},
            {"lora_r": 16, "lora_alpha": 32},
        ),
        (
            {"type": "QLoRA", "compute_dtype": "bfloat16"},
            {"method": "qlora", "torch_dtype": "bfloat16", "double_quant": False},
        ),
        ({"type": "QLoRA", "double_quant": True, "quant_type": "fp4"}, {"double_quant": True, "quant_type": "fp4"}),
        ({"type": "LoHa", "rank_dropout": 0.1, "lora_dropout": 0.05}, {"method": "loha", "rank_dropout": 0.1}),
        ({"type": "LoKr", "decompose_both": True}, {"method": "lokr", "decompose_both": True}),
        ({"type": "LoftQ", "loftq_iter": 2}, {"method": "loftq", "loftq_iter": 2}),
        ({"type": "DoRA", "modules_to_save": "lm_head"}, {"method": "dora", "modules_to_save": ["lm_head"]}),
        (
            {"type": "LoRA", "training_args": {"max_steps": 5, "extra_args": {"adam_beta2": 0.9}}},
            {"training_args": {"max_steps": 5, "adam_beta2": 0.9}},
        ),
    ],
    ids=str,
)
def test_passes_that_train(translated, config, expected):
    data = {"load_dataset_config": {"data_name": "json", "data_files": "rows.jsonl"}}
    configs = [{"name": "rows", "type": "HuggingfaceContainer", **data}]
    passes = {"tune": {**config, "train_data_config": "rows"}, "merge": {"type": "MergeAdapterWeights"}}
    [lora, merge] = translated(passes=passes, data_configs=configs).workflow["passes"]
    assert lora["type"] == "lora" and merge["type"] == "merge_adapter_weights"
    assert {name: lora["parameters"][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("passes", "expected", "note"),
    [
        ({"a": builder(), "b": {"type": "OrtTransformersOptimization", "model_type": "gpt2"}}, ["press"], "fused"),
        ({"a": {"type": "OptimumConversion"}, "b": {"type": "OptimumMerging"}}, ["press"], "one graph"),
        ({"a": builder(), "b": {"type": "AddOliveMetadata", "graph_name": "x"}}, ["press"], "report.json"),
        ({"a": {"type": "GptqQuantizer", "damp_percent": 0.1}}, ["quantize"], "damping"),
        ({"a": {**builder(), "output_name": "x"}}, ["press"], "cache"),
    ],
    ids=str,
)
def test_what_has_no_effect_is_noted(translated, passes, expected, note):
    translation = translated(passes=passes)
    assert [name for name, _ in steps(translation)] == expected
    assert any(note in line for line in translation.notes), translation.notes


HALF = {"type": "OrtTransformersOptimization", "config": {"float16": True, "keep_io_types": False, "opt_level": 0}}


class TestTransformersOptimization:
    def test_behind_a_press_only_its_float16_is_left_to_do(self, translated):
        translation = translated(passes={"a": {"type": "OnnxConversion"}, "b": HALF})
        assert steps(translation)[1:] == [("onnx_float_to_float16", {"keep_io_types": False})]
        [note] = [note for note in translation.notes if note.startswith("passes.b:")]
        assert "fused operators" in note and "opt_level" in note

    def test_on_a_graph_it_does_both(self, translated):
        options = {"force_fp32_ops": ["RandomNormalLike"], "force_fp32_nodes": ["a"]}
        passes = {"b": {**HALF, "config": {**HALF["config"], **options}}}
        first, second = steps(translated(input_model={"type": "ONNXModel", "model_path": "m.onnx"}, passes=passes))
        assert first == ("ort_transformers_optimization", {"opt_level": 0})
        parameters = {"keep_io_types": False, "op_block_list": ["RandomNormalLike"], "node_block_list": ["a"]}
        assert second == ("onnx_float_to_float16", parameters)

    def test_a_search_may_leave_float16_out(self, translated):
        passes = {"a": {"type": "OnnxConversion"}, "b": {**HALF, "config": {"float16": [True, False]}}}
        [_, step] = translated(passes=passes, **SEARCH).workflow["passes"]
        assert step["optional"] and [one["type"] for one in step["any_of"]] == ["onnx_float_to_float16"]

    def test_one_that_does_nothing_leaves_an_alternative_out(self, translated):
        whole = {"type": "OrtTransformersOptimization", "config": {"float16": False}}
        passes = {"a": {"type": "OnnxConversion"}, "b": [whole, HALF]}
        [_, step] = translated(passes=passes, **SEARCH).workflow["passes"]
        assert step["optional"] and [one["type"] for one in step["any_of"]] == ["onnx_float_to_float16"]

    @pytest.mark.parametrize(
        ("config", "place"),
        [
            ({"model_typ": "gpt2"}, "model_typ"),
            ({"opt_level": 7}, "opt_level"),
            ({"float16": True, "keep_io_tpyes": False}, "keep_io_tpyes"),
            ({"float16": "yes"}, "float16"),
        ],
        ids=str,
    )
    def test_one_that_does_nothing_is_read_all_the_same(self, refused, config, place):
        passes = {"a": builder(), "b": {"type": "OrtTransformersOptimization", "config": config}}
        refused(f"passes.b.config.{place}", passes=passes)


@pytest.mark.parametrize("name", [name for name in NAMES if tables.passes()[name].left_out])
def test_a_pass_that_is_left_out_is_read_all_the_same(refused, name):
    refused("passes.b.mistake", passes={"a": builder(), "b": {"type": name, "mistake": 1}})


SEARCH = {"search_strategy": {"execution_order": "joint", "sampler": "random"}, "evaluator": EVALUATOR}


class TestSearch:
    def test_lists_are_choices(self, translated):
        found = steps(translated(passes={"a": builder(int4_block_size=[32, 64], int4_is_symmetric=True)}, **SEARCH))
        assert found[0][1]["block_size"] == {"choice": [32, 64]}
        assert found[0][1]["symmetric"] is True

    def test_a_list_stays_one_where_a_list_is_wanted(self, translated):
        found = steps(translated(passes={"a": {"type": "Rtn", "modules_to_not_convert": ["a", "b"]}}, **SEARCH))
        assert found[0][1]["modules_to_not_convert"] == ["*a*", "*b*"]

    def test_what_is_not_said_is_tried(self, translated):
        for value in ({}, {"int4_block_size": "SEARCHABLE_VALUES"}):
            found = steps(translated(passes={"a": builder(**value)}, **SEARCH))
            assert found[0][1]["block_size"] == {"choice": [32, 64, 128]}

    @pytest.mark.parametrize("where", ["pass", "strategy"])
    def test_or_not(self, translated, where):
        one = {**builder(int4_block_size="DEFAULT_VALUE"), **({"disable_search": True} if where == "pass" else {})}
        strategy = {**SEARCH["search_strategy"], **({"include_pass_params": False} if where == "strategy" else {})}
        assert steps(translated(passes={"a": one}, search_strategy=strategy, evaluator=EVALUATOR)) == [
            ("press", {"precision": "int4"})
        ]

    def test_a_search_of_nothing_is_none(self, translated):
        translation = translated(passes={"a": {**builder(), "disable_search": True}}, **SEARCH)
        assert "search" not in translation.workflow
        assert any("nothing is left open" in note for note in translation.notes)

    def test_a_search_needs_something_to_compare(self, refused):
        assert "engine.evaluator" in refused("evaluator", search_strategy=SEARCH["search_strategy"]).hint

    def test_alternatives(self, translated):
        alternatives = [{"type": "Gptq", "disable_search": True}, {"type": "Rtn", "disable_search": True}]
        [step] = translated(passes={"a": alternatives}, **SEARCH).workflow["passes"]
        assert [one["parameters"]["algorithm"] for one in step["any_of"]] == ["gptq", "rtn"]
        without = translated(passes={"a": alternatives})
        assert steps(without) == [("quantize", {"algorithm": "gptq"})]
        assert any("first alternative" in note for note in without.notes)


QUIET = {**SEARCH, "search_strategy": {**SEARCH["search_strategy"], "include_pass_params": False}}
FLOW_PASSES = {"gptq": {"type": "Gptq"}, "rtn": {"type": "Rtn"}, "build": builder(), "rotate": {"type": "QuaRot"}}


class TestFlows:
    def test_one_flow_is_the_order(self, translated):
        translation = translated(passes=FLOW_PASSES, pass_flows=[["rotate", "rtn", "build"]])
        assert [name for name, _ in steps(translation)] == ["rotate", "quantize", "press"]
        assert any("passes.gptq: in no pass flow" in note for note in translation.notes)

    def test_flows_that_differ_in_one_place_are_alternatives(self, translated):
        flows = [["gptq", "build"], ["rtn", "build"]]
        first, second = translated(passes=FLOW_PASSES, pass_flows=flows, **QUIET).workflow["passes"]
        assert [one["parameters"]["algorithm"] for one in first["any_of"]] == ["gptq", "rtn"]
        assert second["type"] == "press"

    def test_a_pass_that_one_flow_lacks_is_optional(self, translated):
        flows = [["rotate", "rtn", "build"], ["rtn", "build"]]
        first = translated(passes=FLOW_PASSES, pass_flows=flows, **QUIET).workflow["passes"][0]
        assert first["optional"] and [one["type"] for one in first["any_of"]] == ["rotate"]

    def test_without_a_search_the_first_is_done(self, translated):
        translation = translated(passes=FLOW_PASSES, pass_flows=[["gptq", "build"], ["rtn", "build"]])
        assert steps(translation)[0] == ("quantize", {"algorithm": "gptq"})
        assert any("first flow" in note for note in translation.notes)

    def test_others_are_refused(self, refused):
        flows = [["gptq", "build"], ["rotate", "rtn", "build"]]
        assert (
            "one file for each" in refused("engine.pass_flows", passes=FLOW_PASSES, engine={"pass_flows": flows}).hint
        )
        assert "did you mean 'rtn'" in refused("pass_flows", passes=FLOW_PASSES, pass_flows=[["rt", "build"]]).hint


class TestQuantizedGraphs:
    DATA = ({"name": "d", "type": "DummyDataContainer"},)
    MODEL = {"type": "ONNXModel", "model_path": "m.onnx"}  # noqa: RUF012

    def quantized(self, translated, **config):
        passes = {"q": {"type": "OnnxQuantization", "data_config": "d", **config}}
        return translated(input_model=self.MODEL, passes=passes, data_configs=list(self.DATA))

    def test_the_mode_decides(self, translated):
        config = {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QInt8"}
        [(name, parameters)] = steps(self.quantized(translated, **config))
        assert name == "onnx_static_quantization"
        expected = {"data": "d", "quant_format": "qdq", "activation_type": "uint8", "precision": "int8"}
        assert parameters == expected

    def test_what_only_the_other_mode_takes_has_no_effect(self, translated):
        translation = self.quantized(translated, quant_mode="dynamic", per_channel=True)
        assert steps(translation) == [("onnx_dynamic_quantization", {"per_channel": True})]
        assert "passes.q.data_config: no effect here with quant_mode dynamic" in translation.notes

    def test_a_search_tries_both(self, translated):
        passes = {"q": {"type": "OnnxQuantization", "quant_mode": ["static", "dynamic"], "disable_search": True}}
        [step] = translated(input_model=self.MODEL, passes=passes, **SEARCH).workflow["passes"]
        assert [one["type"] for one in step["any_of"]] == ["onnx_static_quantization", "onnx_dynamic_quantization"]


def test_converters_are_typed():
    for converter in CONVERTERS.values():
        assert typing.get_type_hints(converter) and inspect.getdoc(converter)


def steps_of(translated, **passes):
    return translated(passes=passes).workflow["passes"]


def test_surgeries_are_those_of_the_same_name(translated):
    surgeries = [
        {"surgeon": "PackedAttentionToLoopMHA"},
        {"surgeon": "RenameOutputDims", "output_idx": 0, "dim_idx": 0, "dim_name": "patches"},
    ]
    config = {"type": "GraphSurgeries", "surgeries": surgeries, "external_data_name": "vision.onnx.data"}
    [_, step] = steps_of(translated, press=builder(), one=config)
    assert step["parameters"]["surgeries"] == [
        {"type": "packed_attention_to_loop_mha"},
        {"type": "rename_output_dims", "parameters": {"output_idx": 0, "dim_idx": 0, "dim_name": "patches"}},
    ]


def test_an_unknown_surgery_is_refused_with_the_closest(refused):
    config = {"type": "GraphSurgeries", "surgeries": [{"surgeon": "TieWordEmbedding"}]}
    problem = refused("passes.one.surgeries", passes={"press": builder(), "one": config})
    assert "TieWordEmbedding" in problem.problem and "tie_word_embeddings" in problem.hint


@pytest.mark.parametrize(
    ("selective", "expected"),
    [
        ({"algorithm": "k_quant_last"}, {"promote": "last"}),
        ({"algorithm": "k_quant_mixed"}, {"promote": "mixed"}),
        # 0.65 * 4 + 0.35 * 8, and a half and four bits for each group of 32
        ({"algorithm": "kld_gradient", "ratio": 0.65, "group_size": 32}, {"target_bits": 6.025}),
    ],
)
def test_selected_bits_go_to_the_pass_that_quantizes(translated, selective, expected):
    passes = {
        "s": {"type": "SelectiveMixedPrecision", **selective},
        "g": {"type": "Gptq", "bits": 4, "group_size": 32},
        "r": {"type": "Rtn", "bits": 8, "lm_head": True, "embeds": True},
        "m": builder(),
    }
    steps = steps_of(translated, **passes)
    assert [step["type"] for step in steps] == ["quantize", "press"]
    assert steps[0]["parameters"] == {**expected, "algorithm": "gptq", "precision": "int4", "group_size": 32}


def test_options_of_a_provider_are_set_beside_the_model(translated):
    press, options = steps_of(translated, one=builder(enable_cuda_graph=True))
    assert press["type"] == "press" and options["type"] == "session_options"
    assert options["parameters"] == {"provider_options": {"enable_cuda_graph": "1"}}
    tuning = {"type": "OrtSessionParamsTuning", "enable_cuda_graph": True, "trt_fp16_enable": True}
    [_, tuned] = steps_of(translated, press=builder(), one=tuning)
    assert tuned["parameters"]["provider_options"] == {"enable_cuda_graph": "1", "trt_fp16_enable": "1"}


def test_metadata_alone_is_written_by_the_press_before(translated, refused):
    passes = {"press": {"type": "OnnxConversion"}, "one": builder(metadata_only=True)}
    assert [step["type"] for step in steps_of(translated, **passes)] == ["press"]
    refused("passes.one.config.metadata_only", passes={"one": builder(metadata_only=True)})


def test_sixteen_bits_and_tensors_of_their_own_are_taken(translated):
    config = {
        "type": "OnnxStaticQuantization",
        "activation_type": "QUInt16",
        "tensor_quant_overrides": {"a": [{"quant_type": "QInt16"}]},
    }
    [_, step] = steps_of(translated, press=builder(), one=config)
    assert step["parameters"]["activation_type"] == "uint16"
    assert step["parameters"]["tensor_quant_overrides"] == {"a": [{"quant_type": "int16"}]}
