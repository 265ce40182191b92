"""Modules of PyTorch as models: what a script, a saved program or TorchScript says, and what it does wrong.

Expected outputs are those of eager PyTorch.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import coldpress
from coldpress.errors import ColdpressError
from coldpress.graphs.capture.module import ModuleOptions, open_module
from coldpress.graphs.capture.module_export import exported
from coldpress.models.model import Model
from coldpress.models.sources import find_model
from tests.sources import MODULE

HEAD = "import torch\nfrom torch import nn\n"


@pytest.fixture
def script(tmp_path):
    """``script(forward, **functions)``: a script whose module has this forward(), and further text."""

    def write(forward: str, more: str = "def _dummy_inputs(model): return torch.arange(6.).reshape(2, 3)") -> Path:
        body = textwrap.indent(textwrap.dedent(forward).strip(), "    ")
        file = tmp_path / f"net{len(list(tmp_path.iterdir()))}.py"
        file.write_text(f"{HEAD}class Net(nn.Module):\n{body}\ndef _model_loader(path): return Net()\n{more}\n")
        return file

    return write


def opened(file: Path, **options):
    return open_module(Model(file, "script", ""), ModuleOptions(**options))


def test_a_module_is_exported_compared_with_eager_pytorch_and_found_again(tmp_path):
    (tmp_path / "net.py").write_text(MODULE)
    cache = tmp_path / "cache"
    made = coldpress.capture_onnx_graph(tmp_path / "net.py", tmp_path / "out", cache_dir=cache)
    assert made.data["verdict"] == "verified", made.data
    assert made.data["quality"]["relative"] < 1e-5
    assert (tmp_path / "out/model.onnx.data").stat().st_size >= 50 * 16 * 4  # weights lie beside the graph
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    assert {one.name: one.shape for one in session.get_inputs()} == {
        "ids": ["batch", "sequence"],
        "style": ["batch", 4],
    }
    module = opened(tmp_path / "net.py")
    call = module.resized({"batch": 3, "sequence": 9}, seed=5)
    feed = {name: tensor.numpy() for name, tensor in call.tensors.items()}
    for name, found, eager in zip(["scores", "text"], session.run(None, feed), module.outputs(call), strict=True):
        assert name in [one.name for one in session.get_outputs()]
        np.testing.assert_allclose(found, eager.numpy(), rtol=1e-4, atol=1e-6)
    assert coldpress.capture_onnx_graph(tmp_path / "net.py", tmp_path / "out", cache_dir=cache).up_to_date
    before = find_model(str(tmp_path / "net.py")).key
    (tmp_path / "net.py").write_text(MODULE.replace("manual_seed(0)", "manual_seed(1)"))
    assert find_model(str(tmp_path / "net.py")).key != before


def test_an_io_config_names_inputs_outputs_and_axes(script):
    more = """_io_config = {
        "input_names": ["a", "b"], "input_shapes": [[2, 3], [2, 3]], "input_types": ["float32", "int64"],
        "output_names": ["sum"], "dynamic_axes": {"a": {"0": "n"}, "b": {"0": "n"}, "sum": {"0": "n"}}}"""
    module = opened(script("def forward(self, x, y): return x + y", more))
    assert module.call.names == ("a", "b") and module.output_names == ("sum",)
    assert module.axes == {"a": {0: "n"}, "b": {0: "n"}} and module.declared
    assert module.call.tensors["b"].dtype is torch.int64


def test_of_two_axes_the_one_that_takes_other_sizes_is_open(script):
    assert opened(script("def forward(self, x): return x @ torch.ones(3, 2)")).axes == {"x": {0: "batch"}}
    assert opened(script("def forward(self, x): return x.reshape(2, 3) * 2")).axes == {}


MISTAKES = {
    "no loader": ("", "_model_loader", "has no function '_model_loader'"),
    "weights": ("def _model_loader(path): return {'w': torch.ones(1)}", "load_state_dict", "gives dict"),
    "another thing": ("def _model_loader(path): return 3", "return the module itself", "gives int"),
    "nothing to call it with": ("del _dummy_inputs", "_io_config", "does not say what the module takes"),
    "no tensor": ("def _dummy_inputs(model): return {'x': 1}", "give a tensor", "gives no tensor"),
    "too many": ("def _dummy_inputs(model): return torch.ones(1), torch.ones(1)", "mapping", "does not fit forward"),
    "a loader that raises": ("def _model_loader(path): return [][1]", "traceback", "line 7, in _model_loader"),
    "a loader that ends": ("def _model_loader(path): raise SystemExit(3)", "traceback", "SystemExit: 3"),
    "a key": ("_io_config = {'inputnames': ['x']}", "input_names", "io_config has no 'inputnames'"),
    "an axis": ("_io_config = {'dynamic_axes': {'y': {0: 'n'}}}", "known: x", "'y', which is no input"),
    "a config": ("_io_config = [1]", "input_names", "io_config is list"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_a_script_does_wrong_is_told(what, script):
    more, hint, words = MISTAKES[what]
    usual = "def _dummy_inputs(model): return torch.arange(6.).reshape(2, 3)\n"
    file = script("def forward(self, x): return x", usual + more)
    if what == "no loader":
        file.write_text(HEAD)
    with pytest.raises(ColdpressError) as caught:
        opened(file)
    assert words in caught.value.message and hint in str(caught.value)


NOT_TRACED = {
    "a branch": ("if x.sum() > 0:\n        return x\n    return -x", "if x.sum() > 0:", "torch.where"),
    "another library": ("return torch.from_numpy(x.numpy() * 2)", "x.numpy()", "compute it with torch"),
}


@pytest.mark.parametrize("what", NOT_TRACED)
def test_what_cannot_be_traced_is_told_with_its_line(what, script, tmp_path):
    body, line, hint = NOT_TRACED[what]
    file = script(f"def forward(self, x):\n    {body}")
    number = next(place for place, text in enumerate(file.read_text().splitlines(), 1) if line in text)
    with pytest.raises(ColdpressError) as caught:
        exported(opened(file), "fp32", tmp_path)
    assert f"{file}, line {number}, in forward" in caught.value.message
    assert hint in caught.value.hint and caught.value.exit_code == 1


def test_an_axis_that_is_declared_open_but_is_not_is_told_with_its_line(script, tmp_path):
    file = script("def forward(self, x): return x.reshape(2, 3)")
    with pytest.raises(ColdpressError, match="takes no other size than 2") as caught:
        exported(opened(file, io_config={"dynamic_axes": {"x": {"0": "n"}}}), "fp32", tmp_path)
    assert 'return x.reshape(2, 3)"' in caught.value.message and "dynamic_axes" in caught.value.hint


def test_a_script_that_hangs_is_ended_and_its_line_named(script, tmp_path):
    file = script("def forward(self, x): return x", "import time\ntime.sleep(600)")
    with pytest.raises(ColdpressError, match=r"did not end within 0\.5 s") as caught:
        coldpress.run_pass("onnx_conversion", file, tmp_path / "out", script_seconds=0.5, cache_dir=tmp_path / "cache")
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()


def test_a_script_that_ends_its_process_is_told(script, tmp_path):
    file = script("def forward(self, x): return x", "import os\nprint('last words', flush=True)\nos._exit(7)")
    with pytest.raises(ColdpressError, match="ended with exit code 7") as caught:
        coldpress.run_pass("onnx_conversion", file, tmp_path / "out", cache_dir=tmp_path / "cache")
    assert "last words" in caught.value.message


def test_a_saved_program_tells_its_inputs_and_open_axes(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            return x * 2 + 1

    open_axes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    program = torch.export.export(Net(), (torch.randn(3, 4),), dynamic_shapes=open_axes)
    torch.export.save(program, tmp_path / "net.pt2")
    model = find_model(str(tmp_path / "net.pt2"))
    module = open_module(model, ModuleOptions())
    assert model.format == "pt2" and module.call.names == ("x",) and list(module.axes["x"]) == [0]
    graph = exported(module, "fp32", tmp_path).graph
    assert not isinstance(graph.inputs[0].shape[0], int) and graph.inputs[0].shape[1] == 4


def test_torchscript_is_exported_with_its_branches(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            if bool(x.sum() > 0):
                return x * 2
            return -x

    torch.jit.save(torch.jit.script(Net()), tmp_path / "net.pt")
    model = find_model(str(tmp_path / "net.pt"))
    assert model.format == "torchscript"
    with pytest.raises(ColdpressError, match="does not say what it takes"):
        open_module(model, ModuleOptions())
    said = {"input_names": ["x"], "input_shapes": [[2, 3]], "input_types": ["float32"], "dynamic_axes": {"x": [0]}}
    made = coldpress.capture_onnx_graph(tmp_path / "net.pt", tmp_path / "out", io_config=said, cache_dir=tmp_path / "c")
    assert made.data["verdict"] == "verified"
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    for sign in (1, -1):
        x = sign * np.ones((5, 3), np.float32)
        assert np.array_equal(session.run(None, {"x": x})[0], Net()(torch.from_numpy(x)).numpy())


def test_weights_alone_are_no_model(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(ColdpressError, match="not the network") as caught:
        find_model(str(tmp_path / "weights.pt"))
    assert "--model_script" in caught.value.hint


def test_the_loader_gets_the_path_that_is_named_and_its_folder_is_imported_from(tmp_path, script):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/layers.py").write_text("SCALE = 3\n")
    more = "def _model_loader(path):\n    import layers\n    net = Net()\n    net.says = (path, layers.SCALE)\n    return net"
    usual = "def _dummy_inputs(model): return torch.ones(2, 3)\n"
    file = script("def forward(self, x): return x", usual + more)
    module = opened(file, model_path="weights.bin", script_dir=str(tmp_path / "parts"))
    assert module.network.says == ("weights.bin", 3)


def test_scripts_are_read_before_they_are_run(tmp_path, script):
    file = script("def forward(self, x): return x", "raise RuntimeError('run')")
    with pytest.raises(ColdpressError, match="has no function '_loader'"):
        coldpress.run_pass("onnx_conversion", file, tmp_path / "out", loader="_loader", cache_dir=tmp_path / "cache")


def test_axes_are_counted_from_the_end_too(script):
    said = {"input_names": ["x"], "input_shapes": [[2, 3]], "dynamic_axes": {"x": {-1: "w"}}}
    file = script("def forward(self, x): return x.sum(-1)", f"_io_config = {said!r}")
    assert opened(file).axes == {"x": {1: "w"}}
    for axis, shape in ((2, [2, 3]), (0, [])):
        said |= {"input_shapes": [shape], "dynamic_axes": {"x": {axis: "w"}}}
        file = script("def forward(self, x): return x * 2", f"_io_config = {said!r}")
        with pytest.raises(ColdpressError, match=f"'x' has {len(shape)} axes, and none with the number {axis}"):
            opened(file)
