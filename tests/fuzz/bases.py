"""The folders that are mutated: tiny models of several architectures and packed formats, with a tokenizer that
merges."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.architectures import checkpoint

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ARCHITECTURES = ("llama", "smollm2", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "phi3", "qwen3_moe")
FORMATS = ("compressed-tensors", "gptq", "awq")
BASES = (*ARCHITECTURES, *FORMATS)
_TEXT = "the sea and the hill, then the tower; they were there when the weather was 1234 and 56. " * 3


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with fifty merges of English."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer

    special = ["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=311, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # for some architectures it is another one by now


def write_base(name: str, folder: Path) -> Path:
    """The folder of an architecture, or of a llama in a packed format, as ``coldpress quantize`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if name in FORMATS:
        return _quantized(name, folder)
    settings: dict[str, Any] = {"max_position_embeddings": 512} if name != "gpt2" else {"n_positions": 512}
    checkpoint(name, folder, **settings, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    write_tokenizer(folder)
    return folder


def _quantized(form: str, folder: Path) -> Path:
    import coldpress

    source = write_base("llama", folder / "source")
    quantize = partial(coldpress.quantize, source, folder / "quantized", algorithm="rtn", group_size=32)
    quantize(format=form, symmetric=form != "awq", no_verify=True, cache_dir=folder / "cache")
    return folder / "quantized"
