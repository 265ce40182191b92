"""Chat templates and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.folder import edit

TEMPLATES = (
    (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt"
        " %}[assistant] {% endif %}"
    ),
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}S{% endif %}{{ m.content | upper }}{% endfor %}",
    "{%- for m in messages -%}\n  {{- m.role + ':' + m.content -}}\n{%- endfor -%}",
    (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{%"
        " endfor %}"
    ),
    (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}{{"
        " m.content }}{% endfor %}"
    ),
    "{{ messages | tojson }}",
    "{% for m in messages %}{{ m.content.split(' ')[0] }}{{ strftime_now('%Y') }}{% endfor %}",
    "{% for m in messages %}{{ m.content }",
    "",
)


def _tokenizer_config(folder: Path, **changes: Any) -> None:
    edit(folder / "tokenizer_config.json", lambda config: config.update(changes))


def template(folder: Path, random: Random) -> None:
    if (folder / "chat_template.jinja").exists() and random.random() < 0.8:
        (folder / "chat_template.jinja").write_text(random.choice(TEMPLATES))
    else:
        _tokenizer_config(folder, chat_template=random.choice(TEMPLATES))


def template_in_another_place(folder: Path, random: Random) -> None:
    text = random.choice(TEMPLATES[:5])
    place = random.choice(["chat_template.jinja", "chat_template.json", "list", "both"])
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if place == "list":
        others = [
            {"name": "tool_use", "template": "TOOLS"},
            {"name": random.choice(["default", "rag"]), "template": text},
        ]
        _tokenizer_config(folder, chat_template=others)
        return
    if place != "both":
        _tokenizer_config(folder, chat_template=None)
    name = "chat_template.json" if place == "chat_template.json" else "chat_template.jinja"
    (folder / name).write_text(json.dumps({"chat_template": text}) if name.endswith("json") else text)


def _tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder / "tokenizer.json", change)


def vocabulary_swapped(folder: Path, random: Random) -> None:
    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        one, other = random.sample(sorted(vocabulary), 2)
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    _tokenizer(folder, swap)


def vocabulary_with_a_gap(folder: Path, random: Random) -> None:
    _tokenizer(folder, lambda content: content["model"]["vocab"].pop(random.choice(sorted(content["model"]["vocab"]))))


def merges_shuffled(folder: Path, random: Random) -> None:
    _tokenizer(folder, lambda content: random.shuffle(content["model"]["merges"]))


def merges_as_texts(folder: Path, random: Random) -> None:
    def write(content: dict[str, Any]) -> None:
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
        content["model"]["merges"] = merges[: len(merges) - random.choice([0, 10])]

    _tokenizer(folder, write)


def added_token(folder: Path, random: Random) -> None:
    flags = {name: random.random() < 0.3 for name in ("single_word", "lstrip", "rstrip", "normalized")}
    token = {"id": random.choice([311, 312, 319, 400]), "content": random.choice(["<extra>", "sea", " the"]), **flags}
    _tokenizer(folder, lambda content: content["added_tokens"].append({**token, "special": random.random() < 0.5}))


def pre_tokenizer(folder: Path, random: Random) -> None:
    kinds: list[Any] = [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": r"\p{N}{1,3}|[^\s\p{N}]+|\s+"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        {"type": "Whitespace"},
        None,
    ]
    _tokenizer(folder, lambda content: content.update(pre_tokenizer=random.choice(kinds)))


def normalizer(folder: Path, random: Random) -> None:
    kinds: list[Any] = [
        {"type": "NFC"},
        {"type": "NFKC"},
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
        {"type": "Prepend", "prepend": "_"},
    ]
    _tokenizer(folder, lambda content: content.update(normalizer=random.choice(kinds)))


def post_processor(folder: Path, random: Random) -> None:
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = random.choice(
        [[first, {"Sequence": {"id": "A", "type_id": 0}}], [{"Sequence": {"id": "A", "type_id": 0}}, first]]
    )
    processor = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    _tokenizer(folder, lambda content: content.update(post_processor=processor))


def special_tokens(folder: Path, random: Random) -> None:
    settings: list[dict[str, Any]] = [
        {"bos_token": "<|user|>"},
        {"eos_token": "<s>"},
        {"bos_token": None},
        {"eos_token": None},
        {"bos_token": {"content": "<s>", "__type": "AddedToken"}},
        {"pad_token": "<new pad>"},
        {"add_bos_token": True},
        {"add_bos_token": False, "add_eos_token": True},
        {
            "tokenizer_class": random.choice(
                ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "NoSuchTokenizer", None]
            )
        },
        {"add_prefix_space": True},
        {"clean_up_tokenization_spaces": True},
    ]
    _tokenizer_config(folder, **random.choice(settings))


def special_tokens_map(folder: Path, random: Random) -> None:
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": random.choice(["<|user|>", "<s>", {"content": "<s>"}])})
    )
