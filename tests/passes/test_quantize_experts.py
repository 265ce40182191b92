"""``quantize`` on mixtures of experts: each expert for its own tokens, those without any said to be so, pressed bit by
bit."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import coldpress
from coldpress import ColdpressError
from coldpress.models.packed import loading
from coldpress.models.packed.compressed_tensors import METHOD
from coldpress.models.packed.folder import read_packed
from coldpress.networks.reference import Reference
from tests.architectures import checkpoint
from tests.conftest import write_tokenizer
from tests.packed_folders import transformers_logits

MIXTURES = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe")
IDS = np.arange(5, 30)


@pytest.fixture
def mixture(tmp_path):
    def make(name: str, **changes) -> Path:
        folder = checkpoint(name, tmp_path / name, max_position_embeddings=2048, **changes).folder
        write_tokenizer(folder)
        return folder

    return make


@pytest.fixture
def press(tmp_path):
    """The layers of a folder that was pressed, and the report."""

    def run(folder: Path, **options):
        settings = {"head_bits": 16, "no_verify": True, "cache_dir": tmp_path / "cache", **options}
        report = coldpress.optimize(folder, tmp_path / "onnx", **settings).data
        return [layer for layer in report["layers"] if layer["algorithm"] == "as stored"], report

    return run


@pytest.fixture
def registered(monkeypatch) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, METHOD, AUTO_QUANTIZER_MAPPING[METHOD])
    loading.register()


def of_experts(report) -> dict[str, dict]:
    layers = report.data["calibration"]["layers"]
    return {layer["name"]: layer for layer in layers if ".experts." in layer["name"]}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mixtral" else pytest.mark.full) for name in MIXTURES]
)
def test_experts_are_quantized_for_their_tokens_and_pressed_as_they_are(name, mixture, quantize, press, tmp_path):
    report = quantize(mixture(name), algorithm="gptq", symmetric=True, no_verify=True)
    experts = of_experts(report)
    assert len(experts) == 2 * 4 * 3
    seen = [layer for layer in experts.values() if layer["tokens"]]
    assert all(layer["output_error"] < layer["rtn_output_error"] for layer in seen)
    assert len({layer["tokens"] for layer in seen}) > 2
    [expected] = Reference(tmp_path / "quantized").logits([IDS])
    np.testing.assert_allclose(transformers_logits(tmp_path / "quantized", IDS), expected, atol=1e-4)
    stored, pressed = press(tmp_path / "quantized", no_verify=name != "qwen2_moe")
    assert all(layer["exact"] for layer in stored)
    # query, key and value are one layer there, as are gate and up
    assert len(stored) == 2 * (2 + 2 * 4 + 2 * (name == "qwen2_moe"))
    assert (pressed["verdict"] == "verified") == (name == "qwen2_moe")


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral"])
def test_scales_are_folded_into_experts(name, mixture, quantize, tmp_path, registered):
    folder = mixture(name, num_hidden_layers=1)
    plain = of_experts(quantize(folder, "plain", algorithm="kquant", precision="int3", no_verify=True))
    scaled = of_experts(quantize(folder, algorithm="awq", precision="int3", no_verify=True))
    assert all(layer["alpha"] > 0 for layer in scaled.values() if layer["tokens"])
    error = [
        np.mean([layer["output_error"] for layer in found.values() if layer["tokens"]]) for found in (scaled, plain)
    ]
    assert error[0] < error[1]
    [expected] = Reference(tmp_path / "quantized").logits([IDS])
    np.testing.assert_allclose(transformers_logits(tmp_path / "quantized", IDS), expected, atol=1e-4)


def test_experts_without_tokens_are_rounded_without_data_and_said_to_be_so(mixture, quantize, tmp_path):
    folder = mixture("qwen3_moe", num_experts=16)
    report = quantize(folder, algorithm="gptq", max_seq_len=8, num_samples=3, no_verify=True)
    experts = of_experts(report)
    cold = {name for name, layer in experts.items() if layer["fallback"] == "no token came to it"}
    assert cold and cold == {name for name, layer in experts.items() if layer["tokens"] == 0}
    assert all(experts[name]["output_error"] is None for name in cold)
    assert cold < set(read_packed(tmp_path / "quantized"))
    count = len({name.rpartition(".")[0] for name in cold})
    said = f"came to {count} of 32 experts"
    assert any(said in note for note in report.data["source"]["notes"])
    page = (tmp_path / "quantized" / "report.html").read_text()
    assert "Calibration tokens by expert" in page
    charts = [json.loads(html.unescape(spec)) for spec in re.findall(r'data-spec="([^"]*)"', page)]
    cells = [cell for chart in charts for cell in chart.get("data", {}).get("values", []) if "expert" in cell]
    assert len([cell for cell in cells if cell["tokens"] == 0]) == count


def test_a_budget_gives_the_experts_of_a_layer_the_same_bits(mixture, quantize, tmp_path, registered):
    settings = {"algorithm": "kquant", "target_bits": 5.5, "overrides": ("model.embed_tokens=int8",)}
    quantize(mixture("qwen2_moe"), no_verify=True, **settings)
    bits = {name: linear.bits for name, linear in read_packed(tmp_path / "quantized").items()}
    assert len(set(bits.values())) > 1
    for layer in range(2):
        for parts in (("gate_proj", "up_proj"), ("down_proj",)):
            found = [f"model.layers.{layer}.mlp.experts.{place}.{part}" for place in range(4) for part in parts]
            assert len({bits[name] for name in found}) == 1
    [expected] = Reference(tmp_path / "quantized").logits([IDS])
    np.testing.assert_allclose(transformers_logits(tmp_path / "quantized", IDS), expected, atol=1e-4)


@pytest.mark.full
def test_a_budget_in_bytes_holds_for_the_pressed_mixture(mixture, quantize, press, tmp_path):
    quantize(mixture("mixtral"), algorithm="kquant", group_size=32, max_size="390KB", no_verify=True)
    _, pressed = press(tmp_path / "quantized")
    assert 350_000 < pressed["size"]["model_bytes"] <= 390_000


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"overrides": ("*.experts.3.*=int8",)}, "would have 4 bits and .* 8 bits"),
        ({"modules_to_not_convert": ("*.0.mlp.experts.1.up_proj",)}, "would have 4 bits and .* floats"),
        ({"overrides": ("*.shared_expert_gate=int8",)}, "matches no linear layer"),
    ],
)
def test_experts_that_readers_would_misread_are_refused(options, found, mixture, quantize):
    with pytest.raises(ColdpressError, match=found) as caught:
        quantize(mixture("qwen2_moe"), algorithm="kquant", **options)
    assert "*" in str(caught.value.hint)


def test_globs_may_name_what_stays_float_anyway(mixture, quantize, tmp_path):
    globs = ("*.gate", "*.shared_expert_gate", "*.experts.*.down_proj")
    quantize(mixture("qwen2_moe"), algorithm="kquant", symmetric=True, modules_to_not_convert=globs, no_verify=True)
    names = set(read_packed(tmp_path / "quantized"))
    assert len(names) == 2 * (4 + 2 * 4 + 3)


def test_fused_experts_are_refused_with_a_way_that_works(mixture, quantize, press):
    folder = mixture("granitemoe")
    with pytest.raises(ColdpressError, match="one tensor holds the matrices of all experts") as caught:
        quantize(folder, algorithm="gptq")
    assert "auto-opt --algorithm kquant" in str(caught.value.hint)
    press(folder, algorithm="kquant")


@pytest.mark.full
def test_another_format_holds_experts_too(mixture, quantize, press, tmp_path):
    quantize(mixture("mixtral"), algorithm="kquant", format="gptq", no_verify=True)
    stored, _ = press(tmp_path / "quantized")
    assert len(stored) == 2 * (2 + 2 * 4)
    assert all(layer["exact"] for layer in stored)


def test_the_card_says_what_loading_experts_needs(mixture, quantize, tmp_path):
    folder = mixture("qwen3_moe")
    for name, options, needed in (
        ("plain", {"symmetric": True}, None),
        ("zeros", {}, "refuses zero points of experts"),
        ("mixed", {"symmetric": True, "overrides": ("*.experts.*.down_proj=int8",)}, "refuses experts of mixed bits"),
    ):
        quantize(folder, name, algorithm="kquant", no_verify=True, **options)
        card = (tmp_path / name / "README.md").read_text()
        assert (needed in card and "register()" in card) if needed else "register" not in card
