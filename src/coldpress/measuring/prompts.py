"""Whether what a person types becomes the same tokens in onnxruntime-genai, from a result, as in transformers, from its
source.

A model is as good as its tokens. onnxruntime-genai has a tokenizer and a template engine of its own, which do not know
all that those of transformers know; so texts of many scripts, and chats, are sent through both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError, raised_as
from coldpress.models.tokenizers.chat_template import read_chat_template, read_json, refusals, system_within_user
from coldpress.models.tokenizers.genai_tokenizer import SPACE, steps_left_out
from coldpress.models.tokenizers.tokenizer import has_tokenizer, pretrained_tokenizer, without_embedding
from coldpress.serving.prompts import has_chat_template, prompt_ids

Message = Mapping[str, str]

#: what people type, by name
TYPED = {
    "blanks": " one\ttwo   three \n\n  four\r\nfive  ",
    "numbers": "1234567890, 12 3.14 1.5e10 0x1F 7th 100% ½ ²",
    "short forms": "I'm sure you're right, we've seen IT'S they'll 'tis, don\u2019t",
    "punctuation": "Wait... what?! (yes) {[<a>]} @#$%^&*_+=~`|\\/ \u201cquotes\u201d \u2014 \u2026",
    "code": "def f(x):\n    return x**2  # squared\n\n\tif (a != b) && !c:\n",
    "words joined": "camelCase snake_case ABCdef x1y2 https://example.com/a?b=c&d=%20",
    "emoji": "\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\U0001f1eb\U0001f1f7",
    "Latin letters": "caf\u00e9 na\u00efve Stra\u00dfe \u00c0\u00c9\u00ce Ti\u1ebfng Vi\u1ec7t \u00a0non\u00a0breaking",
    "Cyrillic and Greek": "\u041f\u0440\u0438\u0432\u0435\u0442, \u0401\u043b\u043a\u0430! \u03b1\u03b2\u03b3 \u0394",
    "Chinese, Japanese, Korean": (
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\ud55c\uad6d\uc5b4"
        " \ubb38\uc7a5 \uff21\uff22\uff23\uff11\uff12"
    ),
    "Arabic and Hebrew": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0663\u0664",
    "Hindi and Thai": "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "a long word": "supercalifragilistic" * 4,
    "long blanks": " " * 24 + "x" + "\n" * 6 + "\t" * 5 + "y",
}
#: what comes in by copying rather than by typing; a NUL is not among it, as it ends a text for onnxruntime-genai
RARE = {
    "words of hundreds of letters": "ab1" * 150,
    "hundreds of blanks": " " * 200 + "x" + "\n" * 100,
    "accents apart from their letters": "cafe\u0301 n\u0303 \u1112\u1161\u11ab",
    "control characters": "a\x01b\x07\x1b[0m\x7f\x85c",
    "invisible characters": "\ufeffa\u200bb\u00adc\u2028d\u2029e\u180e",
    "unusual blanks": "\u2003a\u2009b\u202fc\u3000d\u1680e\x0b\x0c\x1cf",
    "compatibility characters": "\ufb01 \u33a1 \u01c4 \U0001d4b3 \ue000",
}
_SPECIAL = "special tokens that are typed"
#: rare in prompts that no template makes
_RARE_IN_PROMPTS = {"texts that begin with blanks": "  one", "texts that end with blanks": "one  \n\n"}
_MOST_CHARACTERS = 1 << 17
_MOST_SOUGHT = 16
_MOST_TOKENS = 24
_AROUND = 2


class Source:
    """The tokenizer and the template of a Hugging Face folder, by transformers."""

    def __init__(self, folder: Path, trust_remote_code: bool = False):
        self._folder, self.tokenizer = folder, pretrained_tokenizer(folder, trust_remote_code)
        template = read_chat_template(folder)
        self._template = self.tokenizer.chat_template or (template.source if template else None)

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def begins_with_a_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text, as SentencePiece does."""
        return str(self.tokenizer.convert_ids_to_tokens(self._encoded("a", False))[0]).startswith(SPACE)

    def added_tokens(self) -> list[str]:
        """The special and added tokens for which the model has an embedding, special ones first."""
        added = self.tokenizer.get_added_vocab()
        unused = without_embedding(self._folder, added)
        return [token for token in dict.fromkeys([*self.tokenizer.all_special_tokens, *added]) if token not in unused]

    @property
    def sought(self) -> list[str]:
        """The texts that the template looks for in what is said."""
        from coldpress.models.tokenizers.template_dialect import sought

        try:
            return sought(self._template) if isinstance(self._template, str) else []
        except refusals():
            return []

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text; begun with BOS, where the tokenizer does that and no template does.

        ValueError where there are none.
        """
        return self._encoded(text, not self.has_template)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat that awaits an answer; a system message that is refused begins the user's.

        Raises ValueError where the template refuses the chat.
        """
        if not self.has_template:
            return self.text_ids("\n".join(message["content"] for message in messages))
        try:
            return self._rendered(messages)
        except ValueError:
            folded = system_within_user([dict(message) for message in messages])
            if folded is None:
                raise
            return self._rendered(folded)

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        options = {"tokenize": False, "add_generation_prompt": True}
        template = self._template if isinstance(self._template, str) else None
        try:
            text = self.tokenizer.apply_chat_template(list(messages), chat_template=template, **options)
        except refusals() as error:
            raise ValueError(str(error)) from error
        return self._encoded(text, False)

    def _encoded(self, text: str, with_special_tokens: bool) -> list[int]:
        with raised_as(lambda error: ValueError(str(error))):
            return list(self.tokenizer(text, add_special_tokens=with_special_tokens)["input_ids"])


class Runtime:
    """The same of a result's folder, by onnxruntime-genai. Raises ColdpressError where it cannot read the tokenizer."""

    def __init__(self, folder: Path):
        self._folder = folder

    @cached_property
    def _tokenizer(self) -> Any:
        import onnxruntime_genai as og

        kind = (read_json(self._folder / "tokenizer.json").get("model") or {}).get("type")
        if kind not in ("BPE", "Unigram"):  # another kind can end the process
            raise ColdpressError(f"it has no tokenizer of the kind {kind}" if kind else "there is no tokenizer.json")
        try:
            return og.Tokenizer(str(self._folder))
        except RuntimeError as error:
            raise ColdpressError(str(error)) from error

    def text_ids(self, text: str) -> list[int]:
        is_begun = not has_chat_template(self._folder)
        self._tokenizer.update_options(add_special_tokens="true" if is_begun else "false")
        return [int(token) for token in self._tokenizer.encode(text)]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return prompt_ids(self._tokenizer, self._folder, messages)


def chats(sought: Sequence[str] = ()) -> Iterator[tuple[str, list[Message]]]:
    """Chats of one to four turns, each with and without a system message, some with thoughts, and of the words
    ``sought``."""
    said = [
        "  What is the capital of France \u2014 \u00abtr\u00e8s vite\u00bb \U0001f44d?\n",
        "Paris, \u00e0 mon avis.",
        'And "of" it\'s <b>neighbour</b>? \u00fc',
        " Berlin\n\n* \u00fc ",
        "Why\u2026?",
        "Because.",
        "",
    ]
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    system = {"role": "system", "content": "You are a helpful assistant.\nAnswer briefly."}
    for count, name in ((1, "one turn"), (2, "two turns"), (3, "three turns"), (4, "four turns")):
        yield f"a chat of {name}", list(turns[: 2 * count - 1])
        yield f"a chat of {name} with a system message", [system, *turns[: 2 * count - 1]]
    thought: Message = {"role": "assistant", "content": "<think>\nFrance...\n</think>\n\nParis."}
    yield "a chat with a thought", [turns[0], thought, turns[2]]
    yield "a chat with two thoughts", [system, turns[0], thought, turns[2], thought, turns[4]]
    for text in sought[:_MOST_SOUGHT]:
        content = f"{text} a {text}\n{text}"
        within: list[Message] = [{"role": role, "content": content} for role in ("system", "user", "assistant")]
        yield f"a question with '{text}'", within[1:2]
        yield f"a chat with '{text}'", [*within, turns[2], {"role": "assistant", "content": f"a\n{text}b"}, turns[4]]


def compare_prompts(
    source: Path, result: Path, files: Sequence[str | Path] = (), trust_remote_code: bool = False
) -> dict[str, Any]:
    """How many texts and chats become other tokens in the result, for transformers or the runtime that it is made for,
    and the first of them; nothing without a tokenizer.

    Where there is a chat template, a text is what a user says. ``prompt_difference`` is a sentence with the tokens
    around the first difference; ``rare_differences`` names the kinds of text that are copied rather than typed, and
    differ, and tells whether texts do that are sent without the template.
    """
    if not has_tokenizer(source):
        return {}
    expected = Source(source, trust_remote_code)
    found: list[Source | Runtime] = [Runtime(result)] if (result / "genai_config.json").exists() else []
    found.append(Source(result))  # transformers reads the result as well
    asked = _asked if expected.has_template else lambda text: text
    texts, rare_texts = _texts(expected, files), dict(RARE)
    if not expected.has_template and expected.begins_with_a_blank:
        texts, rare_texts = _as_prompts(texts), {**RARE, **_RARE_IN_PROMPTS, _SPECIAL: texts[_SPECIAL]}
    cases = [(name, asked(text)) for name, text in texts.items()]
    rare_cases = [(name, asked(text)) for name, text in rare_texts.items()]
    if expected.has_template:
        cases += chats(expected.sought)
    try:
        differences = [why for name, said in cases if (why := _first_difference(expected, found, name, said))]
        rare = [name for name, said in rare_cases if _first_difference(expected, found, name, said)]
        if expected.has_template and any(_first_difference(expected, found, *typed) for typed in TYPED.items()):
            rare.append("texts that are not put into the chat template")
    except ColdpressError as error:
        sentence = f"onnxruntime-genai cannot read the model's tokenizer: {error.message}"
        return {"prompts_compared": len(cases), "prompts_differ": len(cases), "prompt_difference": sentence}
    return {
        "prompts_compared": len(cases),
        "prompts_differ": len(differences),
        "prompt_difference": f"{differences[0]}{_cause(result)}" if differences else None,
        "rare_differences": rare,
    }


def _cause(result: Path) -> str:
    """Why onnxruntime-genai may take texts otherwise, as the end of a sentence, and what to do about it."""
    if not (steps := steps_left_out(read_json(result / "tokenizer.json"))):
        return ""
    return (
        f"; the tokenizer has {', '.join(steps)}, which onnxruntime-genai leaves out: give it tokens that transformers"
        " made"
    )


def _asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _texts(source: Source, files: Sequence[str | Path]) -> dict[str, str]:
    texts = [text[:_MOST_CHARACTERS] for text in heldout.texts(files)]
    named = dict(zip((f"the text '{name}'" for name in heldout.names(files)), texts, strict=True))
    typed = "".join(f"a{token} b {token}\nc" for token in source.added_tokens()[:_MOST_TOKENS])
    return {**named, **TYPED, _SPECIAL: typed}


def _as_prompts(texts: Mapping[str, str]) -> dict[str, str]:
    """Texts as they are sent to a model that does not chat: whole, and beginning and ending with what is visible.

    Where a tokenizer puts a blank before a text, onnxruntime-genai puts one also before a text that has it already, and
    behind special tokens; only a template could take it away.
    """
    return {name: text.strip() for name, text in texts.items() if name != _SPECIAL}


def _first_difference(
    expected: Source, found: Sequence[Source | Runtime], name: str, said: str | Sequence[Message]
) -> str | None:
    return next((why for one in found if (why := _difference(expected, one, name, said))), None)


def _difference(expected: Source, found: Source | Runtime, name: str, said: str | Sequence[Message]) -> str | None:
    """Where a text or chat becomes other tokens, as a sentence; None where it does not."""
    right, wrong = (_ids(one.text_ids if isinstance(said, str) else one.prompt_ids, said) for one in (expected, found))
    if right == wrong or (isinstance(right, ValueError) and isinstance(wrong, ValueError)):
        return None
    runtime = "onnxruntime-genai" if isinstance(found, Runtime) else "transformers, from the result,"
    begin = f"{name}: {runtime} does not take it as transformers takes it from the source"
    if isinstance(right, ValueError) or isinstance(wrong, ValueError):
        who, why = ("transformers", right) if isinstance(right, ValueError) else (runtime, wrong)
        return f"{begin}; {who} refuses it: {why}"
    pairs = zip(right, wrong, strict=False)
    place = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(right), len(wrong)))
    shown = [_shown(expected.tokenizer, ids, place) for ids in (right, wrong)]
    return f"{begin}; token {place} begins {shown[1]} instead of {shown[0]}"


def _ids(ids_of: Callable[[Any], list[int]], said: Any) -> list[int] | ValueError:
    try:
        return ids_of(said)
    except ValueError as error:
        return error


def _shown(tokenizer: Any, ids: list[int], place: int) -> str:
    """The tokens around a place."""
    around = ids[max(place - _AROUND, 0) : place + _AROUND + 1]
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(around))) or "nothing"
