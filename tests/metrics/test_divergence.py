"""Divergence tells a faithful model from a wrong one, on text and in answers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from coldpress.data.texts.heldout import load_tokenizer
from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.measuring.prompts import Source
from coldpress.measuring.spread import spread
from coldpress.metrics.divergence import Divergence, kl_divergence, repeated_run
from coldpress.models.model import Model
from coldpress.networks.reference import Reference
from coldpress.parts import Context
from coldpress.parts.task import PRECISIONS, find_task
from coldpress.quant.grid import Grid
from tests.packed_folders import pack_folder

QUICK = Divergence(windows=2, tokens=64, new_tokens=12)


def judge(numbers, precision):
    task = find_task("text_generation")
    return task.judge(numbers, task.limits(precision, None))


def altered(model: Model, folder, file: str, change) -> Model:
    shutil.copytree(model.path, folder)
    changed = change((folder / file).read_bytes())
    (folder / file).write_bytes(changed)
    return Model(folder, "onnx", "altered")


def test_float_model_is_its_source(pressed, context):
    numbers = QUICK.measure(pressed("fp32"), context)
    assert judge(numbers, "fp32") == []
    assert numbers["kl"] < 1e-6
    assert numbers["top1_agreement"] == 1.0
    assert numbers["generation_agreement"] == 1.0
    assert numbers["perplexity_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert len(numbers["answers"]) == 3
    assert set(Divergence.values) <= set(numbers)


def test_fewer_bits_diverge_more(pressed, context):
    int8, int4 = (QUICK.measure(pressed(precision), context) for precision in ("int8", "int4"))
    assert 0 < int8["kl"] < int4["kl"]
    assert judge(int8, "fp32")


def test_the_sources_answers_are_what_it_says_by_itself(pressed, context):
    numbers = QUICK.measure(pressed("int4"), context)
    reference, asked = Reference(context.source.path), Source(context.source.path)
    tokenizer = load_tokenizer(context.source.path)
    for answer in numbers["answers"]:
        prompt = asked.prompt_ids([{"role": "user", "content": answer["question"]}])
        own = tokenizer.decode(reference.greedy(prompt, QUICK.new_tokens))
        assert answer["source"] == own if answer["source_is_whole"] else own.startswith(answer["source"])
        assert answer["source"]


def test_percentiles_come_with_their_errors():
    found = spread(np.arange(101.0)[::-1])
    assert (found["mean"], found["most"], found["tokens"]) == (50, 100, 101)
    assert found["mean_error"] == pytest.approx(8.5**0.5)  # the variance of n numbers in a row is n (n + 1) / 12
    median, *_, last = found["percentiles"]
    assert median == {"at": 50.0, "value": 50.0, "low": 45.0, "high": 55.0}  # sqrt(101) / 2 ranks away
    assert last["value"] <= last["high"] == 100


def test_wrong_weights_break_every_tolerance(pressed, context, tmp_path):
    def spoil(data: bytes) -> bytes:
        values = np.frombuffer(data[: len(data) // 4 * 4], dtype=np.float32)
        return values[::-1].tobytes() + data[len(data) // 4 * 4 :]

    wrong = altered(pressed("fp32"), tmp_path / "wrong", "model.onnx.data", spoil)
    numbers = QUICK.measure(wrong, context)
    assert all(judge(numbers, precision) for precision in PRECISIONS)


def test_a_missing_stop_token_is_found(pressed, context, tmp_path):
    def other_stop(data: bytes) -> bytes:
        config = json.loads(data)
        config["model"]["eos_token_id"] = [7]
        return json.dumps(config).encode()

    model = altered(pressed("fp32"), tmp_path / "other", "genai_config.json", other_stop)
    numbers = QUICK.measure(model, context)
    assert numbers["missing_stop_tokens"] == [1]
    assert any("stop tokens" in sentence for sentence in judge(numbers, "fp32"))


def test_without_a_source_it_says_so(pressed, tmp_path):
    with pytest.raises(ColdpressError, match="Hugging Face model"):
        QUICK.measure(pressed("fp32"), Context(tmp_path))


def test_kl_is_the_textbook_sum():
    random = np.random.default_rng(0)
    source, model = random.normal(size=(2, 70, 11)).astype(np.float32)
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True) for x in (source, model))
    np.testing.assert_allclose(kl_divergence(source, model), (p * np.log(p / q)).sum(-1), rtol=1e-4, atol=1e-6)
    assert np.abs(kl_divergence(source, source + 3)).max() < 1e-6


def test_other_vocabularies_are_refused():
    with pytest.raises(ColdpressError, match="logits"):
        kl_divergence(np.zeros((2, 5), np.float32), np.zeros((2, 6), np.float32))


@pytest.mark.parametrize(
    ("tokens", "run"),
    [
        ([1, 2, 3, 4, 5, 6], (0, 0, 0)),
        ([9, 8, 5, 5, 5, 5], (2, 4, 1)),
        ([7, 1, 2, 1, 2, 1, 2, 9], (1, 6, 2)),
        ([1, 2, 1, 2], (0, 0, 0)),
        ([], (0, 0, 0)),
    ],
)
def test_repeated_runs(tokens, run):
    assert repeated_run(tokens) == run


def test_a_graph_that_the_processor_cannot_run_is_a_plain_error(pressed, context):
    with pytest.raises(ColdpressError, match="cannot run"):
        QUICK.measure(pressed("bf16"), context)
    with pytest.raises(ColdpressError, match="CPUExecutionProvider cannot run"):
        Decoder(pressed("bf16").path, 2)


def test_a_result_that_transformers_cannot_load_is_said_to_be_read_by_coldpress(tiny_model, tmp_path):
    packed = pack_folder(tiny_model, tmp_path, "gptq", lambda _: Grid(8, 32, False))
    numbers = QUICK.measure(Model(packed.folder, "hf", "m"), Context(tmp_path, source=Model(packed.plain, "hf", "s")))
    says = numbers["reference"]["says"]
    assert says.startswith("transformers") and "The result itself was read by coldpress" in says
    assert numbers["kl"] < 1e-6
