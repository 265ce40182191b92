"""A chat model small enough for tests: two layers of random weights, a real tokenizer, and what press makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldpress.data.texts import heldout
from coldpress.models.model import Model
from coldpress.parts import Context, find
from coldpress.target import Target

VOCABULARY = 320


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory) -> Model:
    """A Hugging Face folder with bold weights, so that quantizing them is felt."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("source")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return Model(folder, "hf", "tiny")


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<start>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(heldout.texts(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<start>",
        "eos_token": "<end>",
        "chat_template": "{% for m in messages %}<start>{{ m['content'] }}<end>{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def pressed(tiny_source, tmp_path_factory):
    """precision -> the tiny model pressed so; pressed once for all tests."""
    made: dict[str, Model] = {}

    def press(precision: str) -> Model:
        if precision not in made:
            context = Context(tmp_path_factory.mktemp(precision), Target(threads=2))
            made[precision] = find("passes", "press")(precision=precision).run(tiny_source, context)
        return made[precision]

    return press


@pytest.fixture
def context(tiny_source, tmp_path) -> Context:
    return Context(tmp_path, Target(threads=2), source=tiny_source)
