"""Every architecture, pressed, computes what transformers computes with the same weights.

With ``accuracy_level`` 0 activations stay float, so a pressed graph must be transformers' model with its weights
rounded, to the last digits of float32: a wrong layer, or a weight that was not rounded, cannot hide in a tolerance.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from coldpress.measuring.encoder_decoder import EncoderDecoder
from coldpress.models.model import Model
from coldpress.parts import Context
from coldpress.passes.press import Press
from coldpress.quant.grid import Codes, Grid, dequantize
from coldpress.quant.kquant import kquant
from coldpress.quant.rtn import rtn
from coldpress.target import Target

DECODERS = [
    "llama",
    "smollm2",
    "smollm3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen2_moe",
    "mixtral",
    "olmoe",
    "granitemoe",
    "phi3",
    "gemma2",
    "gemma3",
    "mistral",
    "granite",
    "olmo2",
    "gpt2",
    "gpt_neox",
    "gpt_neo",
    "opt",
    "gptj",
    "cohere",
    "glm4",
]
ENCODERS = ["bert", "distilbert", "vit"]
#: torch.export takes half a minute for each of their graphs
PAIRS = [pytest.param(name, marks=pytest.mark.full) for name in ("t5", "whisper")]
VARIANTS = [
    "llama_narrow",
    "llama_padded",
    "qwen2_windows",
    "llama_scaled",
    "phi3_long",
    "phi3_partial",
    "llama_biases",
    "llama_heads_of_40",
    "llama_heads_of_4",
]
#: one of each kind, which the short tests press; the long ones press all
TYPICAL = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma3",
    "phi3",
    "mixtral",
    "gpt2",
    "bert",
    "vit",
    "t5",
    "qwen2_windows",
    "llama_heads_of_40",
)
#: parts of the names of weights with two axes that are no linear layer and no token embedding, or a router
FLOAT = ("position", "wpe", "token_type", "relative_attention_bias", "gate.weight", "router")
TOKENS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "shared", "proj_out")
CLOSE = 1e-4

Load = Callable[[str], Any]
Pressed = Callable[..., Model]
Quantizer = Callable[[np.ndarray, Grid], Codes]


def session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(graph: Any, **values: np.ndarray) -> dict[str, np.ndarray]:
    asked = {value.name for value in graph.get_inputs()}
    outputs = graph.run(None, {name: value for name, value in values.items() if name in asked})
    return dict(zip((value.name for value in graph.get_outputs()), outputs, strict=True))


def decode(graph: Any, ids: np.ndarray, cuts: Sequence[int] = (7, 8, 9, 10, 11, 12)) -> np.ndarray:
    """The logits of token ids ``[batch, tokens]`` that come in pieces, each on the cache that those before left."""
    batch, done, logits = len(ids), 0, []
    past = {
        value.name: np.zeros([batch, *(size if isinstance(size, int) else 0 for size in value.shape[1:])], np.float32)
        for value in graph.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    for part in np.split(ids, cuts, axis=1):
        mask = np.ones((batch, done + part.shape[1]), np.int64)
        positions = np.tile(np.arange(done, mask.shape[1]), (batch, 1))
        found = run(graph, input_ids=part, attention_mask=mask, position_ids=positions, **past)
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        logits.append(found["logits"])
        done += part.shape[1]
    return np.concatenate(logits, axis=1)


def inputs(name: str) -> dict[str, np.ndarray]:
    """What transformers' model and the graph are both given."""
    random = np.random.default_rng(1)
    ids = random.integers(3, 320, (2, 13))
    if name == "vit":
        return {"pixel_values": random.standard_normal((2, 3, 32, 32)).astype(np.float32)}
    if name in ("bert", "distilbert"):
        mask = np.ones_like(ids)
        mask[1, 9:] = 0
        kinds = {"token_type_ids": (np.arange(13) > 5).astype(np.int64) * np.ones_like(ids)} if name == "bert" else {}
        return {"input_ids": ids, "attention_mask": mask, **kinds}
    if name == "t5":
        return {"input_ids": random.integers(3, 320, (2, 9)), "decoder_input_ids": ids}
    if name == "whisper":
        return {"input_features": random.standard_normal((2, 16, 100)).astype(np.float32), "decoder_input_ids": ids}
    return {"input_ids": ids}


def expected(model: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    import torch

    with torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in given.items()})
    names = ("encoder_last_hidden_state", "logits") if "logits" in found else ("last_hidden_state",)
    return [found[name].numpy() for name in names if name in found]


def computed(folder: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    if (folder / "encoder.onnx").exists():
        graphs = EncoderDecoder(folder, Target())
        return [graphs.encoded(given)["last_hidden_state"], graphs.run(given)["logits"]]
    graph = session(folder / "model.onnx")
    if "past_key_values.0.key" in [value.name for value in graph.get_inputs()]:
        return [decode(graph, given["input_ids"])]
    return [run(graph, **given)["last_hidden_state"]]


def difference(folder: Path, name: str, model: Any) -> float:
    """The largest difference between a pressed folder and a transformers model; padding does not count."""
    given = inputs(name)
    pairs = zip(expected(model, given), computed(folder, given), strict=True)
    shown = given.get("attention_mask", np.ones(1))
    if "input_ids" in given:
        shown = shown[..., None]
    return max(float(np.abs((ours - theirs) * shown).max()) for theirs, ours in pairs)


def rounded(
    model: Any, grid: Grid, tokens: Grid | None = None, keep: tuple[str, ...] = (), rounds: Quantizer = rtn
) -> Any:
    """A copy of a model with its linear layers and embeddings rounded; ``tokens`` is for the embedding and the head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    copied = copy.deepcopy(model)
    turned = {f"{name}.weight" for name, module in copied.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in copied.named_parameters():
        experts = parameter.ndim == 3 and "experts" in name
        if (parameter.ndim != 2 and not experts) or any(part in name for part in (*FLOAT, *keep)):
            continue
        weight = parameter.detach().numpy()
        weight = weight.T if name in turned else weight.reshape(-1, weight.shape[-1])
        chosen = (tokens or grid) if any(part in name for part in TOKENS) else grid
        values = on_grid(weight, chosen, rounds)
        parameter.data = torch.from_numpy(values.T if name in turned else values.reshape(parameter.shape)).contiguous()
    return copied


def on_grid(weight: np.ndarray, grid: Grid, rounds: Quantizer) -> np.ndarray:
    """``weight`` rounded in the largest blocks that divide its columns, or in padded ones where none does."""
    columns = weight.shape[1]
    fitting = [size for size in (16, 32, 64, 128) if size <= grid.block_size and columns % size == 0]
    fitted = Grid(grid.bits, max(fitting, default=grid.block_size), grid.symmetric, "float16")
    return dequantize(rounds(np.ascontiguousarray(weight), fitted), columns)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TYPICAL else pytest.mark.full)
        for name in [*DECODERS, *ENCODERS, *PAIRS, *VARIANTS]
    ],
)
def test_float_weights(name: str, tiny: Load, pressed: Pressed) -> None:
    assert difference(pressed(name, precision="fp32").path, name, tiny(name).model) < CLOSE


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TYPICAL else pytest.mark.full)
        for name in [*DECODERS, *ENCODERS, *PAIRS, *VARIANTS]
    ],
)
def test_eight_bit_weights(name: str, tiny: Load, pressed: Pressed) -> None:
    folder = pressed(name, precision="int8", algorithm="rtn").path
    assert difference(folder, name, rounded(tiny(name).model, Grid(8, 32, symmetric=True))) < CLOSE
    assert difference(folder, name, tiny(name).model) > 10 * CLOSE


@pytest.mark.parametrize("name", ["smollm2", "qwen2", "llama_padded", *PAIRS[:1]])
def test_four_bit_weights_with_an_eight_bit_head_and_embedding(name: str, tiny: Load, pressed: Pressed) -> None:
    reference = rounded(tiny(name).model, Grid(4, 32, symmetric=False), Grid(8, 32, symmetric=True))
    assert difference(pressed(name, precision="int4", algorithm="rtn", embedding_bits=8).path, name, reference) < CLOSE


def test_default_settings_are_the_rounded_model_but_for_activations(tiny: Load, pressed: Pressed) -> None:
    given = inputs("llama")
    reference = rounded(tiny("llama").model, Grid(4, 32, symmetric=False), Grid(8, 32, symmetric=True), rounds=kquant)
    (theirs,), (ours,) = (
        expected(reference, given),
        computed(pressed("llama", accuracy_level=None, embedding_bits=8).path, given),
    )
    assert 1e-4 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.03


#: (architecture, options, grid of linear layers, grid of tokens if another, parts of the names of what stays float)
OPTIONS: dict[str, tuple[str, dict[str, Any], Grid, Grid | None, tuple[str, ...]]] = {
    "small blocks": ("llama", {"block_size": 16, "symmetric": False}, Grid(8, 16, False), None, ()),
    "large blocks": (
        "llama",
        {"precision": "int4", "block_size": 128, "symmetric": True, "head_bits": 4, "embedding_bits": 16},
        Grid(4, 128, True),
        None,
        ("embed_tokens",),
    ),
    "float head": ("llama", {"head_bits": 16}, Grid(8, 32, True), None, ("lm_head",)),
    "float tied head": ("smollm2", {"head_bits": 16}, Grid(8, 32, True), None, ("embed_tokens",)),
    "no tied head": ("smollm2", {"modules_to_not_convert": ("lm_head",)}, Grid(8, 32, True), None, ("embed_tokens",)),
    "a part of a fused layer": (
        "llama",
        {"modules_to_not_convert": ("*.v_proj", "lm_head")},
        Grid(8, 32, True),
        None,
        ("q_proj", "k_proj", "v_proj", "lm_head"),
    ),
    "a layer that is fused in the checkpoint": (
        "phi3",
        {"modules_to_not_convert": ("*.1.mlp.gate_up_proj", "*.0.self_attn.qkv_proj")},
        Grid(8, 32, True),
        None,
        ("1.mlp.gate_up_proj", "0.self_attn.qkv_proj"),
    ),
    "a name of the checkpoint": (
        "gpt2",
        {"modules_to_not_convert": ("*.c_attn",)},
        Grid(8, 32, True),
        None,
        ("c_attn",),
    ),
    "another name in the graph": (
        "gpt_neox",
        {"modules_to_not_convert": ("*.attention.q_proj",)},
        Grid(8, 32, True),
        None,
        ("query_key_value",),
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tiny: Load, pressed: Pressed) -> None:
    name, options, grid, tokens, keep = OPTIONS[case]
    folder = pressed(name, **{"precision": "int8", "algorithm": "rtn", **options}).path
    assert difference(folder, name, rounded(tiny(name).model, grid, tokens, keep)) < CLOSE


def test_a_glob_that_matches_nothing_is_refused(pressed: Pressed) -> None:
    with pytest.raises(ColdpressError, match=r"'\*.w_proj' matches no module"):
        pressed("llama", precision="int8", modules_to_not_convert=("*.w_proj",))


def test_a_tied_embedding_is_stored_once(tiny: Load, pressed: Pressed) -> None:
    roles = [layer.role for layer in pressed("gemma2", precision="int8", algorithm="rtn").provenance.layers]
    assert roles.count("head") == 1 and "embedding" not in roles
    weights = sum(parameter.numel() for parameter in tiny("gemma2").model.parameters())
    embedding = tiny("gemma2").model.get_input_embeddings().weight.numel()
    data = pressed("gemma2", precision="fp32").path / "model.onnx.data"
    assert data.stat().st_size < 4 * (weights + embedding)


def test_biases_of_a_fused_layer_are_part_of_its_product(pressed: Pressed) -> None:
    operators = operators_of(pressed("qwen2", precision="int8", algorithm="rtn").path / "model.onnx")
    assert "MatMul" not in operators and "Add" not in operators and "Concat" not in operators
    assert "MatMulNBits" in operators


def test_routers_stay_float(pressed: Pressed) -> None:
    model = pressed("qwen3_moe", precision="int8", algorithm="rtn")
    assert operators_of(model.path / "model.onnx").count("MatMul") == 2
    names = [layer.name for layer in model.provenance.layers]
    assert any(".experts." in name for name in names) and not any(name.endswith(".mlp.gate") for name in names)


@pytest.mark.parametrize(("name", "precision"), [("gemma2", "int8"), ("granite", "int8"), ("smollm2", "fp32")])
def test_logits_of_the_last_position_alone(name: str, precision: str, pressed: Pressed) -> None:
    algorithm = {"algorithm": "rtn"} if precision == "int8" else {}
    ids = inputs(name)["input_ids"]
    models = [pressed(name, precision=precision, **algorithm, **logits) for logits in ({}, {"logits": "last"})]
    every, last = (decode(session(model.path / "model.onnx"), ids, cuts=()) for model in models)
    assert last.shape == (2, 1, 320)
    assert np.abs(last[:, 0] - every[:, -1]).max() < CLOSE


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_a_prompt_may_come_in_pieces(name: str, tiny: Load, pressed: Pressed) -> None:
    ids = inputs(name)["input_ids"][:1]
    (theirs,) = expected(tiny(name).model, {"input_ids": ids})
    graph = session(pressed(name, precision="fp32").path / "model.onnx")
    assert np.abs(decode(graph, ids, cuts=(5, 9)) - theirs).max() < CLOSE


@pytest.mark.parametrize("tokens", [64, 65, 120])
def test_rotary_caches_of_short_and_long_texts(tokens: int, tiny: Load, pressed: Pressed) -> None:
    ids = np.random.default_rng(2).integers(3, 320, (1, tokens))
    (theirs,) = expected(tiny("phi3_long").model, {"input_ids": ids})
    graph = session(pressed("phi3_long", precision="fp32").path / "model.onnx")
    assert np.abs(decode(graph, ids, cuts=()) - theirs).max() < CLOSE


@pytest.mark.parametrize(("name", "is_kept"), [("bert", True), ("vit", True), ("llama", False)])
def test_models_that_do_not_chat_keep_what_says_what_their_outputs_are(
    name: str, is_kept: bool, pressed: Pressed
) -> None:
    assert (pressed(name).path / "config.json").exists() == is_kept


@pytest.mark.parametrize("name", ["smollm2", "llama_heads_of_40", "llama_heads_of_4"])
def test_onnxruntime_genai_generates_what_transformers_generates(name: str, tiny: Load, tmp_path: Path) -> None:
    import onnxruntime_genai
    import torch

    source = tiny(name)
    folder = tmp_path / "source"
    shutil.copytree(source.folder, folder)
    write_tokenizer(folder)
    (tmp_path / "pressed").mkdir()
    output = Press(precision="fp32").run(Model(folder, "hf", "key"), Context(tmp_path / "pressed"))
    model = onnxruntime_genai.Model(str(output.path))
    prompt = onnxruntime_genai.Tokenizer(model).encode("a small press")
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + 12, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    ours = list(generator.get_sequence(0))
    theirs = source.model.generate(torch.tensor([list(prompt)]), max_new_tokens=12, do_sample=False)[0].tolist()
    assert len(prompt) > 1 and ours == theirs[: len(ours)] and len(ours) > len(prompt)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 300 tokens, in the files that onnxruntime-genai reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a small press presses small things into a small space"] * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def operators_of(file: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
