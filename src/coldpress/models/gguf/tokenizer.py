"""Rebuilding a Hugging Face tokenizer from the metadata of a GGUF file.

A GGUF file holds vocabulary, merges (or scores) and token types, and *names* how text is cut before merging
(``tokenizer.ggml.pre``). What those names stand for is llama.cpp's knowledge; the table ``PRE_TOKENIZERS`` holds it
in terms of the ``tokenizers`` library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.gguf.file import GgufFile

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"  # how SentencePiece writes a blank
SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}{_REST}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}|\p{{N}}{{1,3}}{_REST}"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging.

    ``splits`` are regular expressions of the pieces; each cuts the pieces of the one before. ``nfc`` composes Unicode
    first. ``whole_words`` looks a piece up in the vocabulary before merging. ``add_bos`` is what llama.cpp does when
    the file does not say.
    """

    splits: tuple[str, ...] = (_GPT2,)
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_LIKE = {
    PreTokenizer(): ("gpt-2", "phi-2", "olmo", "mpt", "mellum"),
    PreTokenizer((_DIGIT, _GPT2)): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True): ("llama3", "llama-v3", "llama-bpe", "falcon3"),
    PreTokenizer((_LLAMA3,)): ("dbrx", "smaug-bpe"),
    PreTokenizer((_QWEN2,), nfc=True): ("qwen2", "deepseek-r1-qwen", "megrez"),
    PreTokenizer((_QWEN2,)): ("stablelm2",),
    PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True): ("tekken",),
    PreTokenizer((_GPT4O,)): ("gpt-4o", "llama4"),
}
PRE_TOKENIZERS = {name: pre for pre, names in _LIKE.items() for name in names}

#: tokens of Phi-3 after which blanks and line ends are NOT dropped; after its other special tokens they are
_PHI3_KEEPS_BLANKS = ("<unk>", "<s>", "<|endoftext|>")


def write_tokenizer(gguf: GgufFile, folder: Path) -> list[str]:
    """Write ``tokenizer.json``, its two configs and the chat template; return warnings for the user."""
    tokenizer, warnings = build_tokenizer(gguf)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = special_tokens(gguf)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": _adds_bos(gguf),
        "add_eos_token": bool(gguf.metadata.get("tokenizer.ggml.add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(gguf.value("context_length", 2048)),
    }
    if template := gguf.metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    return warnings


def build_tokenizer(gguf: GgufFile) -> tuple[Any, list[str]]:
    """The ``tokenizers.Tokenizer`` that a file describes, and warnings for the user."""
    kinds = {"gpt2": _byte_level, "llama": _sentence_piece}
    kind = gguf.metadata.get("tokenizer.ggml.model")
    if kind not in kinds or "tokenizer.ggml.tokens" not in gguf.metadata:
        raise ColdpressError(
            f"{gguf.path}: a tokenizer of the kind '{kind}' cannot be rebuilt", hint=f"known: {', '.join(kinds)}"
        )
    tokenizer, warnings = kinds[kind](gguf)
    _add_tokens(tokenizer, gguf)
    _add_frame(tokenizer, gguf)
    return tokenizer, warnings


def special_tokens(gguf: GgufFile) -> dict[str, str]:
    """The texts of the begin, end, unknown and padding tokens, as far as the file names them."""
    tokens = gguf.metadata.get("tokenizer.ggml.tokens", [])
    ids = {name: gguf.metadata.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL_TOKENS.items()}
    return {name: tokens[at] for name, at in ids.items() if at is not None and at < len(tokens)}


def _byte_level(gguf: GgufFile) -> tuple[Any, list[str]]:
    """Byte-level BPE, as GPT-2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if merges is None:
        raise ColdpressError(f"{gguf.path} has no tokenizer.ggml.merges", hint="convert the model to GGUF again")
    pre, warnings = _pre_tokenizer(gguf)
    vocabulary = {token: index for index, token in enumerate(gguf.metadata["tokenizer.ggml.tokens"])}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre.whole_words))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _cutter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, warnings


def _pre_tokenizer(gguf: GgufFile) -> tuple[PreTokenizer, list[str]]:
    name = gguf.metadata.get("tokenizer.ggml.pre", "default")
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name], []
    return PreTokenizer(), [f"unknown pre-tokenizer '{name}': text is cut as GPT-2 does, some token ids may differ"]


def _cutter(pre: PreTokenizer) -> Any:
    """Splits, then bytes as letters.

    ``tokenizers`` has shorter ways to say the same (``Digits``, the rule inside ``ByteLevel``). onnxruntime-genai
    runs ``Digits`` together with the rule after it, not before it, and so cuts line ends before a number
    differently; two splits it runs one after the other.
    """
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in pre.splits]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentence_piece(gguf: GgufFile) -> tuple[Any, list[str]]:
    """SentencePiece BPE: blanks become a letter, bytes stand for what the vocabulary lacks."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = [_spelled(token) for token in gguf.metadata["tokenizer.ggml.tokens"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = special_tokens(gguf).get("unk_token")
    bpe = models.BPE(
        vocab=vocabulary, merges=_merges(gguf, tokens), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    blanks: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gguf.metadata.get("tokenizer.ggml.add_space_prefix", True):
        blanks.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(blanks)
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer, []


def _spelled(token: str) -> str:
    """Runs of blanks stand in the file as blanks, in the vocabulary as SentencePiece writes them."""
    return _SPACE * len(token) if token and not token.strip(" ") else token


def _merges(gguf: GgufFile, tokens: list[str]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece vocabulary, best first.

    SentencePiece joins the neighbours whose union has the best score. Every way to cut a token into two tokens
    is a merge with that token's score; runs of blanks, which it never cuts, come first.
    """
    known = {token: index for index, token in enumerate(tokens)}
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if types is None or scores is None:
        raise ColdpressError(f"{gguf.path} has no token types or scores", hint="convert the model to GGUF again")
    ranked = []
    for index, (token, kind, score) in enumerate(zip(tokens, types.tolist(), scores.tolist(), strict=True)):
        if kind == _NORMAL:
            ranked.append((-score, index, token))
        elif kind == _USER_DEFINED and token == _SPACE * len(token):
            ranked.append((-float("inf"), index, token))
    cuts = ((token[:at], token[at:]) for _, _, token in sorted(ranked) for at in range(len(token) - 1, 0, -1))
    return [pair for pair in cuts if pair[0] in known and pair[1] in known]


def _add_tokens(tokenizer: Any, gguf: GgufFile) -> None:
    """Control tokens are special; user-defined ones are plain text that is never cut."""
    from tokenizers import AddedToken

    types = gguf.metadata.get("tokenizer.ggml.token_type", ())
    drops_blanks = gguf.architecture == "phi3" and gguf.metadata["tokenizer.ggml.model"] == "llama"
    special, plain = [], []
    for token, kind in zip(gguf.metadata["tokenizer.ggml.tokens"], types, strict=False):
        if kind == _CONTROL:
            rstrip = drops_blanks and token not in _PHI3_KEEPS_BLANKS
            special.append(AddedToken(token, normalized=False, special=True, rstrip=rstrip))
        elif kind == _USER_DEFINED and tokenizer.token_to_id(token) is not None:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_frame(tokenizer: Any, gguf: GgufFile) -> None:
    """Put the begin and end tokens around a text where the model was trained with them."""
    from tokenizers import processors

    named = special_tokens(gguf)
    begin = [named["bos_token"]] if _adds_bos(gguf) and "bos_token" in named else []
    wants_end = gguf.metadata.get("tokenizer.ggml.add_eos_token", False)
    end = [named["eos_token"]] if wants_end and "eos_token" in named else []
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *(f"{token}:1" for token in begin), "$B:1", *(f"{token}:1" for token in end)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(begin + end)],
        )


def _adds_bos(gguf: GgufFile) -> bool:
    stated = gguf.metadata.get("tokenizer.ggml.add_bos_token")
    if stated is not None:
        return bool(stated)
    if gguf.metadata.get("tokenizer.ggml.model") == "llama":
        return True
    return _pre_tokenizer(gguf)[0].add_bos


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
