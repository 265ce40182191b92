"""``capture-onnx-graph``: each flag of Olive's has its effect, or is refused with what to do instead."""

from __future__ import annotations

import pytest
import yaml

from coldpress.cli import main


@pytest.fixture
def planned(tiny_model, capsys):
    """``planned(*flags)``: the passes that a dry run shows."""

    def passes(*flags):
        with pytest.raises(SystemExit) as stopped:
            main(["capture-onnx-graph", str(tiny_model), *flags, "--dry_run"])
        said = capsys.readouterr()
        assert stopped.value.code == 0, said.err
        return {step["type"]: step["parameters"] for step in yaml.safe_load(said.out)["passes"]}

    return passes


def test_the_graph_is_float32_and_nothing_else_is_done(planned):
    assert planned()["press"]["precision"] == "fp32" and list(planned()) == ["press"]


def test_sizes_are_fixed_and_the_opset_is_changed_behind_it(planned):
    found = planned("--fixed_param_dict", "batch=1, sequence=8", "--target_opset", "22")
    assert list(found) == ["press", "dynamic_to_fixed_shape", "onnx_opset_conversion"]
    assert found["dynamic_to_fixed_shape"]["dim_param"] == ["batch", "sequence"]
    assert found["dynamic_to_fixed_shape"]["dim_value"] == [1, 8]
    assert found["onnx_opset_conversion"]["target_opset"] == 22


def test_int4_has_its_block_and_level_and_an_exporter_is_chosen(planned):
    flags = ("--precision", "int4", "--int4_block_size", "64", "--int4_accuracy_level", "4", "--use_mobius_builder")
    press = planned(*flags)["press"]
    assert (press["precision"], press["block_size"], press["accuracy_level"]) == ("int4", 64, 4)
    assert press["exporter"] == "mobius"


@pytest.mark.parametrize(
    ("flags", "words", "hint"),
    [
        (["--exclude_lm_head"], "has no counterpart", "feature extraction"),
        (["--extra_mb_options", "a=1"], "has no counterpart", "coldpress show press"),
        (["--conversion_device", "gpu"], "not built on 'gpu'", "--device"),
        (["--past_key_value_name", "kv"], "not called 'kv'", "past_key_values"),
        (["--use_dynamo_exporter", "--use_model_builder"], "two exporters", "leave one of them out"),
        (["--use_dynamo_exporter"], "captured by mobius", "leave the exporter out"),
        (["--torch_dtype", "float32", "--precision", "fp32"], "say the same", "leave one of them out"),
        (["--torch_dtype", "float33"], "float33", "float32"),
        (["--fixed_param_dict", "batch"], "no list of sizes", "batch=1"),
        (["--task", "image-classification"], "is for text generation", "leave it out"),
        (["--task", "text-generaton"], "there is no task", "text-generation"),
        (["--precision", "fp32", "--int4_block_size", "64"], "block_size has no effect", "leave out"),
        (["--script_dir", "x"], "script_dir has no effect", "leave it out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_has_no_effect_is_refused(flags, words, hint, tiny_model, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["capture-onnx-graph", str(tiny_model), "-o", str(tmp_path / "out"), *flags])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert words in said and hint in said and not (tmp_path / "out").exists()
