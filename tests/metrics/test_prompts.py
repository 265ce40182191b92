"""What a person types becomes the same tokens in transformers, from the source, and in onnxruntime-genai, from the
result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldpress.measuring.prompts import compare_prompts
from coldpress.models.tokenizers.tokenizer import write_tokenizer
from coldpress.parts.task import find_task
from coldpress.serving.prompts import chat_text, prompt_ids
from tests.conftest import write_tokenizer as write_tiny_tokenizer

CHATML = "{% for m in messages %}\n<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}\n{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}"  # fmt: skip
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif"
    " %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must"
    " alternate') }}{% endif %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>\n{% endfor %}"
)


def model(folder: Path, template: object = CHATML, edit=None, **settings: object) -> tuple[Path, Path]:
    """A tokenizer's folder, edited, and what is made of it for onnxruntime-genai."""
    source, result = folder / "source", folder / "result"
    source.mkdir()
    result.mkdir()
    write_tiny_tokenizer(source)
    if edit is not None:
        content = json.loads((source / "tokenizer.json").read_text())
        edit(content)
        (source / "tokenizer.json").write_text(json.dumps(content))
    found = {**json.loads((source / "tokenizer_config.json").read_text()), "chat_template": template, **settings}
    (source / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in found.items() if value is not None})
    )
    write_tokenizer(source, result)
    decoder = {"filename": "model.onnx", "head_size": 8, "hidden_size": 8, "num_attention_heads": 1}
    decoder |= {"num_hidden_layers": 1, "num_key_value_heads": 1, "inputs": {}, "outputs": {}}
    genai = {"type": "llama", "context_length": 64, "vocab_size": 261, "eos_token_id": 1, "pad_token_id": 1}
    (result / "genai_config.json").write_text(json.dumps({"model": {**genai, "decoder": decoder}, "search": {}}))
    return source, result


def faults(source: Path, result: Path) -> list[str]:
    return find_task("text_generation").judge(compare_prompts(source, result), {})


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, None, [{"name": "default", "template": CHATML}]])
def test_texts_and_chats_are_alike(tmp_path: Path, template):
    numbers = compare_prompts(*model(tmp_path, template))
    assert (numbers["prompts_differ"], numbers["prompt_difference"]) == (0, None)
    assert numbers["rare_differences"] == (["unusual blanks"] if template == NO_SYSTEM else [])
    assert numbers["prompts_compared"] == (28 if template else 18)


#: what published templates do that onnxruntime-genai's engine does not know, or takes otherwise
THINKS = (
    "{%- for m in messages[::-1] %}{% if m.role == 'user' and not(m.content.startswith('<tool>') and"
    " m.content.endswith('</tool>')) %}{{ loop.revindex }}{% break %}{% endif %}{% endfor %}\n{% for m in messages %}\n"
    "  {%- set content = m.content %}{%- if m.role == 'assistant' and '</think>' in content %}{% set content ="
    " content.split('</think>')[-1].lstrip('\n') %}{% endif %}\n    {{- '<|' ~ m['role'] ~ '|>' +"
    " content.replace('/no_think', '').rstrip() }}\n{%- endfor %}"
)
ASKS = (
    "{% macro said(m, by='user') %}{{ m.role | upper }}{% if m.role.lower() == by and '/think' not in m.content %}"
    " asks{% endif %}: {{ m.content | replace('\"', '\u00ab') | trim }}{{ m.content.split('</think>', 1)[-1] }}{%"
    " endmacro %}{% for m in messages | reverse %}{{ said(m) }}\n{% endfor %}{% if documents is defined and (tools is"
    " undefined) is false and (messages | first).content is sequence %}{{ messages[-1].content }}{% endif %}"
)


@pytest.mark.parametrize("template", [THINKS, ASKS])
def test_what_a_template_does_to_texts_is_done_alike(tmp_path: Path, template: str):
    source, result = model(tmp_path, template)
    numbers = compare_prompts(source, result)
    assert (numbers["prompts_differ"], numbers["prompt_difference"]) == (0, None)
    (result / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    assert compare_prompts(source, result)["prompts_differ"] > 3  # the engine that is asked does not do it by itself


def begins_with_bos(content: dict) -> None:
    special = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": special,
    }


@pytest.mark.parametrize("template", [None, "{{ bos_token }}" + CHATML, CHATML])
def test_a_text_begins_once_with_bos_or_not_at_all(tmp_path: Path, template):
    assert compare_prompts(*model(tmp_path, template, begins_with_bos))["prompts_differ"] == 0


@pytest.mark.parametrize(
    ("template", "edit", "said"),
    [
        (CHATML, lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "instead of .*Ġ.*add_prefix_space, which"),
        (CHATML, lambda content: content.update(normalizer={"type": "Lowercase"}), "(Latin letters|prose).*has Lowercase, which"),
        ("{% for m in messages %}{{ m.content|upper }}{% endfor %}", None, "onnxruntime-genai refuses it"),
        ("{% for m in messages %}{{ m.content|length }}{% endfor %}", None, "numbers: .*begins"),
        (CHATML, lambda content: content["model"].update(type="WordPiece", unk_token="<s>", max_input_chars_per_word=99,
         continuing_subword_prefix="##") or content["model"].pop("merges"), "tokenizer of the kind WordPiece"),
    ],
    ids=["prefix space", "normalizer", "unknown filter", "length of a text", "word pieces"],
)  # fmt: skip
def test_what_onnxruntime_genai_does_not_know_is_worse_than_tolerance(tmp_path: Path, template, edit, said):
    import re

    [fault] = faults(*model(tmp_path, template, edit))
    assert re.search(said, fault), fault


def as_sentencepiece(content: dict) -> None:
    """BPE over whole texts with a mark for blanks, which has merges of several blanks and of a letter with a line
    break."""
    vocabulary = {
        token: index for index, token in enumerate(["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"])
    }
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    letters = ["\u2581", *map(chr, range(33, 127)), "\u2581\u2581", "\u2581" * 4, "s.", "\u2581t", "'t", "th"]
    for token in (*bytes_, *letters):
        vocabulary[token] = len(vocabulary)
    merges = [["\u2581", "\u2581"], ["\u2581" * 2, "\u2581" * 2], ["s", "."], ["\u2581", "t"], ["'", "t"], ["t", "h"]]
    options = {"unk_token": None, "byte_fallback": True, "fuse_unk": True, "ignore_merges": False, "dropout": None}
    content["model"] = {"type": "BPE", "vocab": vocabulary, "merges": merges, **options}
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, blanks]}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    content |= {"pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": decoders}}


def test_a_tokenizer_of_sentencepiece_is_read_whole(tmp_path: Path):
    numbers = compare_prompts(*model(tmp_path, CHATML, as_sentencepiece))
    assert (numbers["prompts_differ"], numbers["prompt_difference"]) == (0, None)


def as_llama(content: dict) -> None:
    """The same with Llama's special tokens, for the class that makes its own pre-tokenizer."""
    as_sentencepiece(content)
    vocabulary, flags = content["model"]["vocab"], {"special": True, "normalized": False}
    flags |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    vocabulary |= {"<unk>": len(vocabulary), "</s>": len(vocabulary) + 1}
    content["model"]["unk_token"] = "<unk>"
    content["added_tokens"] = [
        {"id": vocabulary[token], "content": token, **flags} for token in ("<unk>", "<s>", "</s>")
    ]


BEGINS_WITH_TEXT = (
    "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n{% endfor %}<|assistant|>"
)
BEGINS_WITH_TOKEN = (
    "{% for m in messages %}{{ bos_token + ' [I] ' + m.content.strip() + ' [/I]' + eos_token }}{% endfor %}"
)


@pytest.mark.parametrize("template", [BEGINS_WITH_TEXT, BEGINS_WITH_TOKEN])
@pytest.mark.parametrize("legacy", [False, True], ids=["before the whole text", "before every piece"])
def test_a_blank_is_put_before_what_transformers_puts_one_before(tmp_path: Path, template: str, legacy: bool):
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": legacy}
    source, result = model(tmp_path, template, as_llama, tokenizer_class="LlamaTokenizer", **named)
    numbers = compare_prompts(source, result)
    assert (numbers["prompts_differ"], numbers["prompt_difference"]) == (0, None)
    assert "texts that are not put into the chat template" in numbers["rare_differences"]
    (result / "tokenizer_module.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer"}))
    assert compare_prompts(source, result)["prompts_differ"] > 0


@pytest.mark.parametrize("legacy", [False, True], ids=["before the whole text", "before every piece"])
def test_the_prompts_of_a_base_model_are_alike_but_for_blanks_at_their_beginning(tmp_path: Path, legacy: bool):
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": legacy}
    numbers = compare_prompts(*model(tmp_path, None, as_llama, tokenizer_class="LlamaTokenizer", **named))
    assert (numbers["prompts_differ"], numbers["prompt_difference"]) == (0, None)
    assert "texts that begin with blanks" in numbers["rare_differences"]
    assert "texts that end with blanks" not in numbers["rare_differences"]


#: of published models that do not chat, and of DeepSeek's
FALCON = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    {"type": "Digits", "individual_digits": False},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
]
DEEPSEEK = [
    *(
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            (
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        )
    ),
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
]


@pytest.mark.parametrize(("steps", "template"), [(FALCON, None), (DEEPSEEK, CHATML)], ids=["falcon", "deepseek"])
def test_steps_of_published_pre_tokenizers_are_taken_alike(tmp_path: Path, steps: list, template: str | None):
    def edit(content: dict) -> None:
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    numbers = compare_prompts(*model(tmp_path, template, edit))
    assert (numbers["prompts_differ"], numbers["prompt_difference"]) == (0, None)


def test_text_that_is_only_copied_is_a_remark(tmp_path: Path):
    """onnxruntime-genai composes no accents: what people type is composed already."""
    numbers = compare_prompts(*model(tmp_path, edit=lambda content: content.update(normalizer={"type": "NFC"})))
    assert numbers["prompts_differ"] == 0
    assert "accents apart from their letters" in numbers["rare_differences"]


def test_a_result_whose_template_was_changed_is_found(tmp_path: Path):
    source, result = model(tmp_path)
    settings = json.loads((result / "tokenizer_config.json").read_text())
    (result / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": "{{ messages[0].content }}"})
    )
    assert "the text 'prose'" in faults(source, result)[0]


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages[0].content }}"])
def test_transformers_reads_the_result_as_the_source_too(tmp_path: Path, template: str):
    """It looks into another file than onnxruntime-genai."""
    source, result = model(tmp_path)
    (result / "chat_template.jinja").write_text(template)
    assert "transformers, from the result" in faults(source, result)[0]


def test_a_chat_is_never_sent_bare(tmp_path: Path):
    import onnxruntime_genai as og

    _, result = model(tmp_path, NO_SYSTEM)
    tokenizer = og.Tokenizer(str(result))
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert chat_text(tokenizer, asked) == "<s><|user|>Be brief.\n\nWhy?<|end|>\n"
    for refused in ([asked[1], asked[1]], [asked[0]]):
        with pytest.raises(ValueError, match="refuses the chat"):
            prompt_ids(tokenizer, result, refused)
    with pytest.raises(ValueError, match="NUL"):
        prompt_ids(tokenizer, result, [{"role": "user", "content": "a\0b"}])
