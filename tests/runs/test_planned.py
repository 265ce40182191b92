"""Passes are checked against what the passes before are going to make, never against the files of another model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from coldpress import ColdpressError, Model, Planned, Step, Store, Target, Verify, Workflow
from coldpress.models.model import find_graphs
from coldpress.models.planned import weights_of
from coldpress.passes.press import Press
from coldpress.passes.quantize import Quantize
from coldpress.quant.grid import Grid
from coldpress.runs.engine import dry_run, run
from tests import onnx_models
from tests.adapters import make_adapter
from tests.packed_folders import pack_folder

#: an 8-bit grid of packed weights has no fast kernel with it
SLOW = {"accuracy_level": 0, "head_bits": 16, "embedding_bits": 16}


@pytest.fixture
def clone(tiny_model: Path, tmp_path: Path) -> Path:
    """A Hugging Face folder as it is cloned from the hub: with an int8 graph that somebody exported."""
    folder = tmp_path / "clone"
    shutil.copytree(tiny_model, folder)
    source = onnx_models.saved(onnx_models.dense(), tmp_path / "dense")
    made = onnx_models.run_pass("onnx_dynamic_quantization", source)
    (folder / "onnx").mkdir()
    shutil.copyfile(made.path / "model.onnx", folder / "onnx" / "model_qint8_avx512.onnx")
    return folder


def workflow(model: Path, output: Path, **parameters: object) -> Workflow:
    steps = (Step("press", {"precision": "fp32"}), Step("onnx_dynamic_quantization", parameters))
    return Workflow(str(model), steps, output=str(output), verify=Verify(enabled=False), metrics=())


def test_graphs_beside_the_source_have_no_say(clone, tmp_path):
    report = run(workflow(clone, tmp_path / "out"), store=Store(tmp_path / "cache"))
    [graph] = find_graphs(report.model.path)
    assert report.exit_code == 0 and graph == "model.onnx"
    assert [entry["format"] for entry in report.data["passes"]] == ["onnx", "onnx"]


def test_what_a_pass_made_is_looked_at_when_it_is_there(clone, tmp_path):
    """No plan knows the nodes of a graph; those of the graph in the clone are not meant."""
    request = workflow(clone, tmp_path / "out", nodes_to_exclude=["second/Gemm*"])
    dry_run(request)
    with pytest.raises(ColdpressError, match=r"'second/Gemm\*' matches no node of model.onnx"):
        run(request, store=Store(tmp_path / "cache"))
    assert not (tmp_path / "out").exists()


def test_a_plan_knows_what_will_stay(tiny_model, tmp_path):
    """Codes that no fast kernel reads are refused before an adapter is attached to them, or merged into them."""
    packed = pack_folder(tiny_model, tmp_path, "compressed-tensors", lambda _: Grid(8, 32, True)).folder
    make_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "travel", r=2, target_modules=["q_proj"])
    source, attach = Model(packed, "hf", "key"), Step("attach_adapters", {"adapter_path": [str(tmp_path / "travel")]})
    attached = attach.check(source, Target())
    assert isinstance(attached, Planned) and list(attached.adapters) == ["travel"]
    merged = Step("merge_adapter_weights").check(attached, Target())
    for planned in (attached, merged):
        with pytest.raises(ColdpressError, match="8-bit"):
            Press(**SLOW).check(planned, Target())
    assert weights_of(Step("rotate").make().foretold(attached)) is None


def test_a_pass_that_leaves_a_model_as_it_is_foretells_that(tiny_model, tmp_path):
    packed = Model(pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(4, 32, True)).folder, "hf", "key")
    plain = Model(tiny_model, "hf", "key")
    assert Quantize(if_possible=True).foretold(packed) is packed
    made = Quantize(if_possible=True, precision="int8").foretold(plain)
    assert isinstance(made, Planned) and made.provenance.precision == "int8"
    assert made.settings == tiny_model and made.weights is None
