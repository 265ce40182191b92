"""Folders with changed tokenizers and templates are refused, or found to differ, or speak as in transformers; nothing
else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coldpress.errors import ColdpressError
from coldpress.measuring.prompts import compare_prompts
from coldpress.models.tokenizers.tokenizer import check_tokenizer, write_tokenizer
from tests.conftest import write_tokenizer as write_tiny_tokenizer

_ALWAYS, _MORE = 8, 60
_ASKED = [
    "Grüße, it's 12:30 -- don't!\n\n  x = y[3]\t# <|end|> ok",
    " <s>\u4f60\u597d  one\n",
    "<|user|>SHOUTING 2\u00bd \U0001f44d",
]

Change = Callable[[dict, dict, random.Random], None]


def _template(edit: Callable[[str, random.Random], str]) -> Change:
    def change(content: dict, settings: dict, rng: random.Random) -> None:
        settings["chat_template"] = edit(str(settings["chat_template"]), rng)

    return change


def _put(text: str, rng: random.Random, piece: str) -> str:
    """A piece between two tags or within what stands between them."""
    places = [place + 2 for place in range(len(text)) if text.startswith(("%}", "}}"), place)]
    place = rng.choice(places)
    return text[:place] + piece + text[place:]


_PIECES = (
    "\n", "\n   ", "  \n\n", "{{ unk_token }}", "{{ pad_token }}", "{% if tools is none %}T{% endif %}", "{# no #}\n", "{{ bos_token }}",
    "{{ messages[0]['content']|length }}", "{% if 'e' in messages[0]['content'] %}E{% endif %}", "{{ messages|tojson }}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}", "{%+ if true %}\n{% endif %}",
    "{{ messages[0]['content'].replace('a', 'b') }}", "{% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{{ messages[-1]['content'][0] }}", "{% set y = messages[0]['content']|trim %}{{ y }}", "{% raw %}{{ z }}\n{% endraw %}", "{{ no.such }}",
)  # fmt: skip
_PRE = (
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]},
    {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|[^\\p{L}\\p{N}]+"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]},
)  # fmt: skip
_NORMALIZERS = (
    {"type": "NFC"},
    {"type": "NFKC"},
    {"type": "Lowercase"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
)
_MERGES = (
    ["t", "h"],
    ["\u0120", "t"],
    ["1", "2"],
    ["e", "r"],
    ["\u010a", "\u010a"],
    ["\u0120", "\u0120"],
    ["'", "t"],
    ["<", "|"],
)


def _merges(content: dict, settings: dict, rng: random.Random) -> None:
    for pair in rng.sample(_MERGES, 4):
        content["model"]["merges"].append(pair)
        content["model"]["vocab"]["".join(pair)] = len(content["model"]["vocab"])


def _added(content: dict, settings: dict, rng: random.Random) -> None:
    flags = {name: rng.random() < 0.4 for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
    token = {"id": len(content["model"]["vocab"]) + 1, "content": rng.choice(["[x]", "one", "  ", "Gr\u00fc"]), **flags}
    content["added_tokens"].append(token)


def _flag(content: dict, settings: dict, rng: random.Random) -> None:
    token = rng.choice(content["added_tokens"])
    token[rng.choice(["lstrip", "rstrip", "normalized", "special"])] ^= True


def _setting(content: dict, settings: dict, rng: random.Random) -> None:
    name, value = rng.choice([
        ("tokenizer_class", "LlamaTokenizer"), ("tokenizer_class", "GPT2Tokenizer"), ("tokenizer_class", "BertTokenizer"),
        ("add_bos_token", True), ("eos_token", "<|user|>"), ("unk_token", "<unk>"), ("bos_token", None), ("add_prefix_space", True),
        ("chat_template", ""), ("chat_template", []), ("extra_special_tokens", ["<|new|>"]), ("bos_token", {"content": "<s>", "lstrip": True}),
    ])  # fmt: skip
    settings[name] = value


_CHANGES: tuple[Change, ...] = (
    _template(lambda text, rng: _put(text, rng, rng.choice(_PIECES))),
    _template(lambda text, rng: _put(text, rng, rng.choice(_PIECES))),
    _template(
        lambda text, rng: text.replace("{% endfor %}", "", 1) if rng.random() < 0.3 else text.replace("{%", "{%-")
    ),
    lambda content, settings, rng: content.update(pre_tokenizer=rng.choice(_PRE)),
    lambda content, settings, rng: content.update(normalizer=rng.choice(_NORMALIZERS)),
    _merges,
    _added,
    _flag,
    _setting,
)


def _broken(file: Path, rng: random.Random) -> None:
    """Now and then a file is cut or begins with a byte order mark."""
    data = file.read_bytes()
    if rng.random() < 0.08:
        file.write_bytes(data[: rng.randrange(len(data))])
    elif rng.random() < 0.05:
        file.write_bytes(b"\xef\xbb\xbf" + data)


def _mutated(folder: Path, rng: random.Random) -> None:
    write_tiny_tokenizer(folder)
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    content, settings = (json.loads(file.read_text()) for file in files)
    for change in rng.sample(_CHANGES, rng.choice([1, 1, 2])):
        change(content, settings, rng)
    for file, value in zip(files, (content, settings), strict=True):
        file.write_text(json.dumps(value))
        _broken(file, rng)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 300, "architectures": ["LlamaForCausalLM"]}))


def _right(folder: Path, messages: list[dict]) -> list[int] | None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.chat_template:
        return tokenizer(messages[0]["content"])["input_ids"]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _wrong_prompts(source: Path, result: Path) -> list[str]:
    """The questions that become other tokens, asked without any code of coldpress."""
    import onnxruntime_genai as og

    tokenizer, wrong = og.Tokenizer(str(result)), []
    has_template = (result / "chat_template.jinja").exists()
    tokenizer.update_options(add_special_tokens="false" if has_template else "true")
    for question in _ASKED:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(json.dumps(messages)) if has_template else question
        if tokenizer.encode(text).tolist() != _right(source, messages):
            wrong.append(question)
    return wrong


@pytest.mark.parametrize(
    "seeds",
    [range(_ALWAYS), pytest.param(range(_ALWAYS, _ALWAYS + _MORE), marks=pytest.mark.full)],
    ids=["some", "many"],
)
def test_a_changed_folder_is_refused_or_worse_or_speaks_alike(tmp_path: Path, seeds: range):
    decoder = {"filename": "model.onnx", "head_size": 8, "hidden_size": 8, "num_attention_heads": 1}
    decoder |= {"num_hidden_layers": 1, "num_key_value_heads": 1, "inputs": {}, "outputs": {}}
    genai = {"type": "llama", "context_length": 64, "vocab_size": 300, "eos_token_id": 1, "pad_token_id": 1}
    outcomes = {"refused": 0, "worse": 0, "alike": 0}
    for seed in seeds:
        source, result = tmp_path / f"{seed}", tmp_path / f"{seed}-result"
        source.mkdir()
        result.mkdir()
        _mutated(source, random.Random(seed))
        (result / "genai_config.json").write_text(json.dumps({"model": {**genai, "decoder": decoder}, "search": {}}))
        try:
            check_tokenizer(source)
            write_tokenizer(source, result)
        except ColdpressError as error:
            assert "\n" not in error.message and error.hint, seed
            outcomes["refused"] += 1
            continue
        if compare_prompts(source, result)["prompts_differ"]:
            outcomes["worse"] += 1
            continue
        assert _wrong_prompts(source, result) == [], f"seed {seed}"
        outcomes["alike"] += 1
        shutil.rmtree(source)
    assert outcomes["alike"] >= len(seeds) // 4 and outcomes["refused"] + outcomes["worse"] > 0, outcomes
