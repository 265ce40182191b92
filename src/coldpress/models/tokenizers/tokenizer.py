"""The tokenizer of a model folder as transformers has it: checked before any work, written so that every runtime reads
it alike.

The classes of transformers change what tokenizer.json says, make it of other files, and add tokens; onnxruntime-genai
and the library ``tokenizers`` read the file alone. So a result gets the tokenizer that transformers has made of the
source's files.
"""

from __future__ import annotations

import json
import shutil
import string
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.errors import ColdpressError, raised_as
from coldpress.models.tokenizers.chat_template import FILE, ChatTemplate, read_chat_template, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FAST, SETTINGS, NAMED = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
#: the classes with which transformers takes tokenizer.json as it is; the first is the one that all runtimes know
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_BASE64 = string.ascii_letters.encode() + string.digits.encode() + b"+/"
#: other files that transformers makes a tokenizer of
_OTHERS = ("*.model", "*.spm", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt", "merges.txt")
#: files, the bytes they may begin with, and the library that reads them; both libraries call theirs tokenizer.model
_OF_LIBRARIES = (
    ("*.model", b"\n", "sentencepiece"),
    ("*.spm", b"\n", "sentencepiece"),
    ("*.model", _BASE64, "tiktoken"),
    ("*.tiktoken", _BASE64, "tiktoken"),
)
#: settings that name tokens for inputs which a model of text does not have; such a token may lie beyond its embedding
_OF_OTHER_INPUTS = ("image_token", "video_token", "audio_token")
#: settings that hold several tokens
_OF_TOKENS = (
    "added_tokens_decoder",
    "extra_special_tokens",
    "additional_special_tokens",
    "model_specific_special_tokens",
)
_WRITTEN_ANEW = ("auto_map", "chat_template")
_WRITES_TEXT = ("CausalLM", "LMHeadModel")
_SHOWN = 5


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a file of which transformers makes a tokenizer."""
    return (folder / FAST).is_file() or any(any(folder.glob(pattern)) for pattern in _OTHERS)


def pretrained_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer that transformers has for a folder; the folder's own code is only run if it is trusted.

    Raises ColdpressError where transformers has none.
    """
    _check_needs(folder)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    own_code = "auto_map" in read_json(folder / SETTINGS) and not trust_remote_code
    kind: Any = PreTrainedTokenizerFast if own_code and (folder / FAST).is_file() else AutoTokenizer

    def told(error: BaseException) -> ColdpressError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ColdpressError(
            f"no tokenizer can be loaded from {folder}: {reason}", hint=f"{_SAVE}, or name its folder as 'tokenizer'"
        )

    with raised_as(told):
        return kind.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def fast_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder for the library ``tokenizers``, without the rest of transformers where the file says it
    all."""
    from tokenizers import Tokenizer

    is_alone = not (folder / SETTINGS).is_file() and not (folder / "config.json").is_file()
    if (folder / FAST).is_file() and (is_alone or read_json(folder / SETTINGS).get("tokenizer_class") in AS_IT_IS):
        return _from_file(folder / FAST)
    if not has_tokenizer(folder):
        raise ColdpressError(f"{folder} has no tokenizer: no {FAST}, nor a file to make it of", hint=_SAVE)
    return Tokenizer.from_str(_backend(pretrained_tokenizer(folder), folder).to_str())


def writes_text(folder: Path) -> bool:
    """Whether a folder's configuration names a network that continues texts."""
    kinds = read_json(folder / "config.json").get("architectures") or []
    return any(str(kind).endswith(_WRITES_TEXT) for kind in kinds)


def check_tokenizer(folder: Path) -> list[str]:
    """Raise ColdpressError when what a person types cannot become tokens of the model in ``folder``.

    That is so when a file cannot be read, nothing can be made of the files, tokens lie beyond the model's vocabulary,
    or the chat template is not one. A folder without a tokenizer is not looked at, nor one whose model does not write
    text and that has no tokenizer.json. A special token beyond the vocabulary that has no part in a text and that no
    template writes is only remarked, as the one for images in a Gemma 3 that only reads texts: the result is a
    sentence, or nothing.
    """
    if not (folder / FAST).is_file() and not (has_tokenizer(folder) and writes_text(folder)):
        return []
    settings = {**read_json(folder / NAMED), **read_json(folder / SETTINGS)}
    tokenizer = _from_file(folder / FAST) if (folder / FAST).is_file() else fast_tokenizer(folder)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    for number, token in settings.get("added_tokens_decoder", {}).items():
        ids.setdefault(_text(token), int(number))
    elsewhere = {_text(settings[name]) for name in _OF_OTHER_INPUTS if name in settings}
    named = [_text(value) for name, value in sorted(settings.items()) if name.endswith("_token") and value]
    for token in named:  # transformers adds those that are missing at the end
        ids.setdefault(token, max(ids.values(), default=-1) + 1)
    template = read_chat_template(folder)
    if template is not None:
        template.check()
    special = {str(added) for added in tokenizer.get_added_tokens_decoder().values() if added.special}
    written = template.source if template is not None else ""
    unused = elsewhere | {token for token in special.difference(named) if token not in written}
    beyond = without_embedding(folder, ids)
    _check_ids(folder, {token: number for token, number in beyond.items() if token not in unused})
    if not beyond:
        return []
    return [
        f"{_listed(beyond)} of the tokenizer, for inputs other than text, has no embedding: the result reads it as"
        " text."
    ]


def write_tokenizer(folder: Path, output: Path, trust_remote_code: bool = False) -> None:
    """Write the tokenizer and the chat template that transformers has for ``folder``, for all runtimes that may read
    ``output``."""
    tokenizer = pretrained_tokenizer(folder, trust_remote_code)
    made, unused = _with_embedding(_backend(tokenizer, folder), folder)
    if (folder / FAST).is_file() and _are_alike(_from_file(folder / FAST), made):
        shutil.copyfile(folder / FAST, output / FAST)
    else:
        made.save(str(output / FAST))
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    tokens = {name: token for name, token in named.items() if token not in unused}
    settings = {
        **_settings(folder, unused),
        "tokenizer_class": AS_IT_IS[0],
        "model_input_names": list(tokenizer.model_input_names),
        "padding_side": tokenizer.padding_side,
        **tokens,
        **_ends(made, tokens),
    }
    from coldpress.models.tokenizers.genai_tokenizer import write_for_genai

    if (template := read_chat_template(folder)) is not None:
        template.check()
        text = ChatTemplate(template.source, tokens).spelled_out()
        (output / FILE).write_text(text, encoding="utf-8")
        settings["chat_template"] = text
    _write_json(output / SETTINGS, settings)
    _write_json(output / NAMED, tokens)
    write_for_genai(made, output, settings.get("chat_template"), tokens.values())


def _with_embedding(tokenizer: Tokenizer, folder: Path) -> tuple[Tokenizer, set[str]]:
    """The tokenizer without the tokens that have no embedding, which a quantized embedding would not refuse; and
    these."""
    from tokenizers import Tokenizer

    unused = set(without_embedding(folder, tokenizer.get_vocab(with_added_tokens=True)))
    if not unused:
        return tokenizer, unused
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in unused]
    return Tokenizer.from_str(json.dumps(content)), unused


def _settings(folder: Path, unused: set[str]) -> dict[str, Any]:
    """The source's settings, without those that a result has otherwise and those that would bring ``unused`` tokens
    back."""
    settings = {name: value for name, value in read_json(folder / SETTINGS).items() if name not in _WRITTEN_ANEW}
    for name in _OF_TOKENS:
        if isinstance(several := settings.get(name), dict):
            settings[name] = {key: token for key, token in several.items() if _text(token) not in unused}
        elif isinstance(several, list):
            settings[name] = [token for token in several if _text(token) not in unused]
    return {
        name: value for name, value in settings.items() if name not in _OF_OTHER_INPUTS or _text(value) not in unused
    }


def _ends(tokenizer: Tokenizer, tokens: dict[str, str]) -> dict[str, bool]:
    """Whether the tokenizer puts BOS before a text and EOS behind it, for runtimes that do not read its
    post-processor."""
    kind = "the tokenizer that transformers makes of the folder's files"
    with raised_as(lambda error: ColdpressError(f"{kind} cannot take a text: {error}", hint="is it the model's own?")):
        plain, whole = (tokenizer.encode("a", add_special_tokens=adds).tokens for adds in (False, True))
    added = len(whole) - len(plain)
    return {
        "add_bos_token": bool(added) and whole[0] == tokens.get("bos_token"),
        "add_eos_token": bool(added) and whole[-1] == tokens.get("eos_token"),
    }


_SAVE = "save one there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"


def _check_needs(folder: Path) -> None:
    """Raise ColdpressError where the files are of a library that is not installed; transformers would name another."""
    if (folder / FAST).is_file():
        return
    for pattern, begin, library in _OF_LIBRARIES:
        for file in folder.glob(pattern):
            with file.open("rb") as stream:
                if stream.read(1) in begin and find_spec(library) is None:
                    raise ColdpressError(
                        f"{file} needs {library} to become a {FAST}, and it is not installed",
                        hint="pip install 'coldpress[tokenizers]' brings it",
                    )


def _backend(tokenizer: Any, folder: Path) -> Tokenizer:
    if not hasattr(tokenizer, "backend_tokenizer"):
        kind = type(tokenizer).__name__
        raise ColdpressError(f"the tokenizer in {folder} is a {kind}, of which there is no fast form", hint=_SAVE)
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _from_file(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    def told(error: BaseException) -> ColdpressError:
        read_json(file)  # names the line, where that is what is wrong
        return ColdpressError(f"{file} is no tokenizer: {error}", hint="is the copy complete?")

    with raised_as(told):
        return Tokenizer.from_file(str(file))


def _are_alike(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether all that decides the tokens of a text is the same; how long texts are cut and filled does not."""
    texts = one.to_str(), other.to_str()
    if texts[0] == texts[1]:  # the usual case, without reading megabytes of vocabulary
        return True
    contents = (json.loads(text) | {"truncation": None, "padding": None} for text in texts)
    return bool(next(contents) == next(contents))


def _rows(folder: Path) -> Any:
    config = read_json(folder / "config.json")
    return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")


def without_embedding(folder: Path, ids: dict[str, int]) -> dict[str, int]:
    """Those of the tokens that lie beyond the embedding of the model in ``folder``."""
    rows = _rows(folder)
    return {token: number for token, number in ids.items() if isinstance(rows, int) and number >= rows}


def _check_ids(folder: Path, beyond: dict[str, int]) -> None:
    if beyond:
        raise ColdpressError(
            f"the tokenizer in {folder} gives tokens that the model has no embedding for: {_listed(beyond)}; "
            f"vocab_size in config.json is {_rows(folder)}",
            hint="take the tokenizer that belongs to the model, or resize the model's embedding",
        )


def _listed(ids: dict[str, int]) -> str:
    ordered = sorted(ids, key=lambda token: (ids[token], token))
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(f"'{token}' ({ids[token]})" for token in ordered[:_SHOWN]) + more


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
