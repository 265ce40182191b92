"""What onnxruntime-genai alone reads of a result: settings, and where it needs them a tokenizer and a template of its
own.

It has no pre-tokenizers of SentencePiece's kinds: it puts a blank before every piece of a text between special tokens,
also one that begins with a blank, or before none. So it gets a template that writes a blank more, or less, where
transformers' tokenizer puts another; and for a tokenizer that puts one before the whole text alone, as those of Llama 2
and Phi 3, a file that asks for none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.models.tokenizers.template_dialect import literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: settings over those of tokenizer_config.json, and the tokenizer over tokenizer.json
SETTINGS, TOKENIZER = "tokenizer_module.json", "tokenizer_genai.json"
SPACE = "\u2581"  # what SentencePiece writes for a blank
#: steps of a normalizer that onnxruntime-genai does in some way, or that change nothing that is typed
_NORMALIZERS = ("Sequence", "Prepend", "Replace", "Precompiled", "NFC")
#: of more added tokens, those that the template or the tokenizer names are looked for at the beginning of a prompt
_MOST_TOKENS = 64


def write_for_genai(made: Tokenizer, output: Path, template: str | None, named: Iterable[str]) -> None:
    """Write into ``output`` what onnxruntime-genai needs to read the tokenizer ``made`` and ``template`` as they are
    meant.

    ``named``: the special tokens.
    """
    content: dict[str, Any] = json.loads(made.to_str())
    if (kind := _class_of(content)) is None:
        return
    settings = {"tokenizer_class": kind}
    scheme = _scheme(content)
    if template is not None and scheme is not None:
        tokens = [token["content"] for token in content["added_tokens"]]
        if len(tokens) > _MOST_TOKENS:
            tokens = [token for token in tokens if token in template or token in set(named)]
        settings["chat_template"] = _BLANKS[scheme](template, tokens)
        if scheme == "first":
            settings["tiktoken_file"] = TOKENIZER
            _write_json(output / TOKENIZER, _without_blank(content))
    _write_json(output / SETTINGS, settings)


def steps_left_out(content: dict[str, Any]) -> list[str]:
    """What a tokenizer does to a text that onnxruntime-genai leaves out."""
    normalizer, cuts = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = [step["type"] for step in normalizer.get("normalizers", [normalizer]) if step]
    cut = [step for step in cuts.get("pretokenizers", [cuts]) if step]
    prefix = ["add_prefix_space"] if any(step.get("add_prefix_space") for step in cut) else []
    return [*(step for step in steps if step not in _NORMALIZERS), *prefix]


def _class_of(content: dict[str, Any]) -> str | None:
    """The class under which onnxruntime-genai reads a tokenizer of SentencePiece's kinds as it is meant.

    By the name of its class it chooses between Unigram and BPE, and whether BPE goes over a text as a whole, as
    SentencePiece does and as it does for Gemma, or over pieces that a pattern cuts.
    """
    if content["model"]["type"] == "Unigram":
        return "ChatGLMTokenizer"  # of the Unigram classes, the one that adds no token at an end
    written = {step.get("replacement") for step in _decoders(content)} | {
        (step.get("pattern") or {}).get("String") for step in _decoders(content)
    }
    return "GemmaTokenizer" if SPACE in written else None


def _decoders(content: dict[str, Any]) -> list[dict[str, Any]]:
    decoder: dict[str, Any] = content.get("decoder") or {}
    return list(decoder.get("decoders", [decoder]))


def _scheme(content: dict[str, Any]) -> str | None:
    """Before what a tokenizer puts a blank, unless one is there: the ``first`` piece of a text, or ``always``."""
    cuts = content.get("pre_tokenizer") or {}
    is_whole = cuts.get("type") == "Metaspace" and not cuts.get("split") and not content.get("normalizer")
    scheme = cuts.get("prepend_scheme") if is_whole and content["model"]["type"] == "BPE" else None
    return scheme if scheme in _BLANKS else None


def _without_blank(content: dict[str, Any]) -> dict[str, Any]:
    """By the step that takes the blank from a decoded text, onnxruntime-genai knows that one is put before it."""
    steps = [step for step in _decoders(content) if step["type"] != "Strip"]
    return {**content, "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": steps}}


def _blank_at_first(template: str, tokens: list[str]) -> str:
    """The template, beginning with a blank where its prompt begins neither with one nor with a special token."""
    without = " or ".join(f"prompt.startswith({literal(begin)})" for begin in (" ", SPACE, *tokens))
    return f'{_prompt(template)}{{%- if not ({without}) -%}}{{{{- " " -}}}}{{%- endif -%}}{{{{- prompt -}}}}'


def _blanks_taken(template: str, tokens: list[str]) -> str:
    """The template without one blank where its prompt begins with some, and behind its special tokens."""
    taken = "".join(
        f"{{%- set prompt = prompt.split({literal(token + ' ')})|join({literal(token)}) -%}}" for token in tokens
    )
    begin = '{%- if prompt.startswith(" ") -%}{%- set prompt = prompt[1:] -%}{%- endif -%}'
    return f"{_prompt(template)}{begin}{taken}{{{{- prompt -}}}}"


_BLANKS: dict[str, Callable[[str, list[str]], str]] = {"first": _blank_at_first, "always": _blanks_taken}


def _prompt(template: str) -> str:
    return "{% set prompt %}" + template.removesuffix("\n") + "{% endset %}"


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
