"""The chat template of a folder is the one that transformers takes, and is written so that other engines render it
alike."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from coldpress.errors import ColdpressError
from coldpress.models.tokenizers.chat_template import ChatTemplate, read_chat_template
from coldpress.models.tokenizers.tokenizer import check_tokenizer, fast_tokenizer, write_tokenizer
from tests.conftest import write_tokenizer as write_tiny_tokenizer

PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
OTHER = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
CHAT = [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": '<"pad">'}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_tokenizer(tmp_path)
    return tmp_path


def put(folder: Path, in_settings: object = None, **files: str) -> Path:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    settings |= {"chat_template": in_settings} if in_settings is not None else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, text in files.items():
        file = folder / (
            f"additional_chat_templates/{name}.jinja" if name != "chat_template" else "chat_template.jinja"
        )
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("in_settings", "files"),
    [
        (OTHER, {"chat_template": PLAIN}),
        ([{"name": "tool_use", "template": OTHER}, {"name": "default", "template": PLAIN}], {}),
        (OTHER, {"chat_template": PLAIN, "tool_use": OTHER}),
        (OTHER, {"default": PLAIN}),
        (PLAIN, {}),
    ],
    ids=["file before settings", "list", "folder and file", "folder", "settings"],
)
def test_the_template_in_force_is_the_one_of_transformers(folder: Path, in_settings, files):
    from transformers import AutoTokenizer

    put(folder, in_settings, **files)
    expected = AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(CHAT, tokenize=False)
    assert read_chat_template(folder).render(CHAT) == expected
    output = folder / "result"
    output.mkdir()
    write_tokenizer(folder, output)
    assert AutoTokenizer.from_pretrained(str(output)).apply_chat_template(CHAT, tokenize=False) == expected
    assert json.loads((output / "tokenizer_config.json").read_text())["chat_template"] == PLAIN


@pytest.mark.parametrize(
    ("in_settings", "files", "said"),
    [
        ([{"name": "tool_use", "template": PLAIN}], {}, "none of them is named 'default'"),
        (3, {}, "neither a text nor a list"),
        (None, {"chat_template": "a\n{% for m in messages %}"}, "chat_template.jinja, line 2: .*not valid Jinja"),
        (None, {"chat_template": "{{ messages|nothing }}"}, "not valid Jinja.*nothing"),
        (None, {"chat_template": "{{ raise_exception('only tools') }}"}, "refuses a single question.*only tools"),
        (None, {"chat_template": "{{ messages[0].content.nothing.more }}"}, "refuses a single question"),
    ],
)
def test_a_template_that_transformers_cannot_render_is_refused(folder: Path, in_settings, files, said: str):
    with pytest.raises(ColdpressError, match=said):
        check_tokenizer(put(folder, in_settings, **files))


@pytest.mark.parametrize(
    "source",
    [
        PLAIN,
        "{% for m in messages %}\n  {% if true %}\n\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n\n",
        (
            "\n\n{% for m in messages %}\n\n  {{ m.content }}\n\n  x {% if true %} \n {# c #}  \n {#- d -#}{% endif"
            " %}{% endfor %}\n"
        ),
        "a\n   {%+ if true %}\n{{ messages|length }}{% endif +%}\nb\n {%- if true -%}  \n x{% endif %}\n\nq\r\nz",
        "{% raw %}{{ no }}\n{% endraw %}\n{% set x %}\ny\n{% endset %}{{ x }}",
        "{{ pad_token }}{{ tools is none }}{{ documents is defined }}{{ bos_token }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
        (
            "{{ 1 - (2 - 3) * -4 }}{{ (1 ~ 2) == '12' }}{{ not (1 == 2) and (true or false) }}{{ {'a': [1,"
            " (2,)]}['a'][1][0] }} \t"
        ),
        (
            "{% for m in messages if m.content|trim != 'x' recursive %}{{ loop.index }}{% else %}none{% endfor %}\n{{"
            " -(messages|length) ** 2 }}"
        ),
        (
            "{% macro f(x, y='\"\n') %}{{ x }}{{ y }}{{ caller('z') }}{% endmacro %}{% call(z) f(1) %} {{ z }} {%"
            " endcall %}\n"
        ),
        (
            "{% filter upper %}a{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% set c | upper %}q{%"
            " endset %}\n {{ c }}"
        ),
        (
            "{% set x, y = [1, 2] %}{{ 0 < x < 3 }}{{ 'r' in 'are' }}{{ '' in 'are' }}{{ 'b' in ['b'] }}{{ 'c' not in"
            " {'c': 1} }}{{ x is in [1] }}"
        ),
        (
            "{{ ''.join(['a', 'B']).upper() }}{{ 'USER'.lower() }}{{ 'user'.upper() }}{{ 'aXa'.replace('a', 'b', 1)"
            " }}{{ 12 | replace('1', 3) }}{{ [3, 4]|reverse|list }}{{ 'ab'|reverse }}{{ 'ab'|first }}{{ nothing in 'a'"
            " if nothing is defined }}{{ 'a' in nothing }}"
        ),
        (
            "{% for m in messages if 'x' in m.content or 'i' in m.content %}{% if 'x' in m.content %}X{% elif 'i' not"
            " in m.content %}I{% else %}{{ m.role }}{% endif %}{% endfor %}{% for m in (messages if messages else [])"
            " %}{{ loop.index }}{% endfor %}{% set y = 'a' in messages[0].content %}{% if (1 if y else 0) == 0 and"
            " messages[0].content|replace(' ', '') %}{{ y }}{% endif %}"
        ),
        (
            "{{ 'aXa'|replace('a', 'b')|lower }}{{ messages|first|length }}{{ messages|reverse|first|length > 1 }}{{"
            " 'a'.upper()|lower ~ 'b' }}"
        ),
        (
            "{% for m in ['abcbd', 'q', ''] %}{{ m.split('b', 1)[0] }},{{ m.split('b', 1)[1] }},{{ m.split('b', 1)[1]"
            " is defined }},{{ m.split('b', 1)[-1] }},{{ m.rsplit('b', 1)[-1] }},{{ m.partition('b')[0] }},{{"
            " m.partition('b')[2] }},{{ m.rpartition('b')[2] }}{{ m.split('b', 2)[1] }}{{ m.rsplit('b', 1)[0] }};{%"
            " endfor %}{{ '\\u00e9\\x41\\a' }}"
        ),
    ],
)
def test_a_template_that_is_spelled_out_means_the_same_to_an_engine_of_other_habits(source: str):
    """Here that is jinja2 with its own defaults, and with nothing given but what onnxruntime-genai gives."""
    template = ChatTemplate(source, SPECIAL)
    expected, written = template.render(CHAT, True), template.spelled_out()
    assert ChatTemplate(written, SPECIAL).render(CHAT, True) == expected
    if "generation %" not in source:
        given = {name: SPECIAL[name] for name in ("bos_token", "eos_token")}
        other = jinja2.Environment().from_string(written)
        assert other.render(messages=CHAT, add_generation_prompt=True, **given) == expected
        assert not set("+#") & {mark for tag in written.split("{")[1:] for mark in tag[1:2]}


def vocabulary_of(folder: Path, size: int) -> Path:
    (folder / "config.json").write_text(json.dumps({"vocab_size": size, "architectures": ["LlamaForCausalLM"]}))
    return folder


def test_tokens_beyond_the_embedding_are_named(folder: Path):
    check_tokenizer(vocabulary_of(folder, 261))
    check_tokenizer(vocabulary_of(folder, 300))
    with pytest.raises(ColdpressError, match=r"'ń' \(260\); vocab_size in config.json is 260".replace("ń", "Ń")):
        check_tokenizer(vocabulary_of(folder, 260))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<pad>"}))
    with pytest.raises(ColdpressError, match=r"'<pad>' \(261\)"):
        check_tokenizer(vocabulary_of(folder, 261))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "image_token": "<image>"}))
    check_tokenizer(vocabulary_of(folder, 261))


def test_a_special_token_without_embedding_and_a_part_in_texts_is_text(folder: Path):
    """As the one for images in Gemma 3 models that only read texts."""
    from transformers import AutoTokenizer

    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"special": True, "normalized": False, **dict.fromkeys(("single_word", "lstrip", "rstrip"), False)}
    content["added_tokens"].append({"id": 261, "content": "<image>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    [remark] = check_tokenizer(vocabulary_of(folder, 261))
    assert "'<image>' (261)" in remark
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    brought = {
        "extra_special_tokens": {"image_token": "<image>"},
        "added_tokens_decoder": {"261": {"content": "<image>"}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **brought}))
    output = folder / "result"
    output.mkdir()
    write_tokenizer(folder, output)
    made = AutoTokenizer.from_pretrained(str(output))
    assert max(made("a <image> b <|user|>", add_special_tokens=False)["input_ids"]) < 261
    assert made.decode(made("a <image> b", add_special_tokens=False)["input_ids"]) == "a <image> b"
    for told in ({"eos_token": "<image>"}, {"chat_template": "{{ messages[0].content }}<image>"}):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **told}))
        with pytest.raises(ColdpressError, match=r"'<image>' \(261\)"):
            check_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("spoil", [lambda data: data[:100], lambda data: b"\xef\xbb\xbf" + data, lambda data: b"[]"])
def test_a_broken_file_is_named(folder: Path, name: str, spoil):
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    with pytest.raises(ColdpressError, match=name):
        check_tokenizer(folder)


def test_a_tokenizer_without_its_one_file_is_made_of_the_others(tmp_path: Path):
    """Byte-level BPE of GPT-2's two files; what it shall be is what transformers makes of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    trained.train_from_iterator(["the cat sat on the mat, the hat"] * 4, trainer)
    trained.model.save(str(tmp_path))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    check_tokenizer(vocabulary_of(tmp_path, 280))
    text = "the cat, the hat <|endoftext|>é"
    expected = AutoTokenizer.from_pretrained(str(tmp_path))(text)["input_ids"]
    assert fast_tokenizer(tmp_path).encode(text).ids == expected
    output = tmp_path / "result"
    output.mkdir()
    write_tokenizer(tmp_path, output)
    assert Tokenizer.from_file(str(output / "tokenizer.json")).encode(text).ids == expected


@pytest.mark.parametrize(("content", "library"), [(b"\n\x0e\n\x05<unk>", "sentencepiece"), (b"IQ== 0\n", "tiktoken")])
def test_a_library_that_is_missing_is_named(tmp_path: Path, content: bytes, library: str, monkeypatch):
    import importlib.util

    monkeypatch.setattr(
        "coldpress.models.tokenizers.tokenizer.find_spec",
        lambda name: None if name == library else importlib.util.find_spec(name),
    )
    vocabulary_of(tmp_path, 280)
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ColdpressError, match=rf"{tmp_path}.tokenizer\.model needs {library}") as caught:
        check_tokenizer(tmp_path)
    assert "pip install" in str(caught.value.hint)


def test_files_of_which_nothing_can_be_made_are_refused_in_the_terms_of_the_folder(tmp_path: Path):
    (vocabulary_of(tmp_path, 280) / "merges.txt").write_text("a b\n")
    with pytest.raises(ColdpressError, match=f"no tokenizer can be loaded from {tmp_path}"):
        check_tokenizer(tmp_path)
