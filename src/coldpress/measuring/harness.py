"""A model of ours as the language model of EleutherAI's lm-evaluation-harness.

What it asks of a model: how likely a continuation is, how likely a whole text is, and what comes next until one of some
texts. Tokens are counted and cut as in its own backend for transformers, so that its numbers are those one finds
published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from coldpress.errors import ColdpressError
from coldpress.measuring.inference import Speaker
from coldpress.measuring.losses import log_softmax
from coldpress.models.tokenizers.chat_template import refusals, system_within_user

_ANSWER_TOKENS = 256
_TOKEN_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens")
#: what of a task's settings for generation is followed, and which values of others change nothing for a greedy answer
_FOLLOWED = ("until", *_TOKEN_COUNTS)
_GREEDY = {
    "do_sample": (False,),
    "temperature": (0, 0.0, 1, 1.0),
    "top_p": (1, 1.0),
    "num_beams": (1,),
    "top_k": (0, 1, 50),
}

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Voice:
    """A language model: ``score`` gives logits ``[tokens, vocab]`` for ids, ``speak()`` opens what answers; ``length``
    is its context."""

    tokenizer: Any
    score: Callable[[np.ndarray], np.ndarray]
    speak: Callable[[], Speaker]
    length: int


class Harness(TemplateLM):
    """One request after the other; requests that share all but their last token share one run of the model."""

    def __init__(self, voice: Voice, progress: Progress):
        super().__init__()
        self.tokenizer = voice.tokenizer
        self._voice, self._progress = voice, progress
        self._scored: tuple[tuple[int, ...], np.ndarray] = ((), np.zeros((0, 0)))
        self._speaker: Speaker | None = None

    @property
    def eot_token_id(self) -> int:
        found = self.tokenizer.eos_token_id
        return int(found if found is not None else self.tokenizer.bos_token_id or 0)

    @property
    def prefix_token_id(self) -> int:
        found = self.tokenizer.bos_token_id
        return int(found) if found is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self._voice.length

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the model sees it; a system message that the template refuses begins the first user message."""
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        chat, folded = chat_history, system_within_user(chat_history)
        while True:
            try:
                text = self.tokenizer.apply_chat_template(
                    chat, **options, continue_final_message=not add_generation_prompt
                )
            except refusals() as error:
                if folded is None:
                    raise ColdpressError(f"the model's chat template refuses a question: {error}") from error
                chat, folded = folded, None
            else:
                return str(text)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **settings: Any
    ) -> list[tuple[float, bool]]:
        """For each context and continuation: how likely it is (log), and whether it is what the model would say."""
        found: dict[int, tuple[float, bool]] = {}
        in_order = sorted(range(len(requests)), key=lambda index: requests[index][1] + requests[index][2])
        for done, index in enumerate(in_order, start=1):
            asked, context, continuation = requests[index]
            found[index] = self._likelihood(context, continuation)
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, found[index])
            self._progress("scoring", done, len(requests))
        return [found[index] for index in range(len(requests))]

    def _likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        if len(continuation) > self.max_length:
            raise ColdpressError(
                f"a continuation has {len(continuation)} tokens; the model's context has {self.max_length}"
            )
        ids = tuple([*context, *continuation][-(self.max_length + 1) :][:-1])
        if self._scored[0] != ids:
            self._scored = ids, self._voice.score(np.array(ids, dtype=np.int64))
        chances = log_softmax(self._scored[1][len(ids) - len(continuation) :].astype(np.float32))
        rows = np.arange(len(continuation))
        is_greedy = bool((chances.argmax(axis=-1) == np.array(continuation)).all())
        return float(chances[rows, continuation].astype(np.float64).sum()), is_greedy

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(likelihood for likelihood, _ in self._loglikelihood_tokens(parts)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        found = []
        for done, request in enumerate(requests, start=1):
            context, settings = request.args
            found.append(self._answer(context, dict(settings)))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
            self._progress("answering", done, len(requests))
        return found

    def _answer(self, context: str, settings: dict[str, Any]) -> str:
        until, count = _asked(settings)
        until = [*until, self.tokenizer.decode([self.eot_token_id])]
        self._speaker = self._speaker or self._voice.speak()
        ids = self.tok_encode(context)[-max(1, self.max_length - count) :]

        def said(tokens: list[int]) -> str:
            return str(self.tokenizer.decode(tokens))

        tokens = self._speaker(
            {"input_ids": np.array([ids], dtype=np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)},
            count,
            lambda so_far: any(text in said(so_far) for text in until),
        )
        answer = said(tokens)
        return answer[: min((answer.find(text) for text in until if text in answer), default=len(answer))]


def _asked(settings: dict[str, Any]) -> tuple[list[str], int]:
    """Where to stop and after how many tokens; ColdpressError for settings that a greedy answer cannot follow."""
    for name, value in settings.items():
        if name not in _FOLLOWED and value is not None and value not in _GREEDY.get(name, ()):
            raise ColdpressError(
                f"the task asks for {name} = {value!r}; answers are greedy here",
                hint="set do_sample: false in its generation_kwargs, and leave out the rest",
            )
    until = settings.get("until") or []
    counts = [settings[name] for name in _TOKEN_COUNTS if settings.get(name) is not None]
    stops = [until] if isinstance(until, str) else list(until)
    return [text for text in stops if text], int(counts[0]) if counts else _ANSWER_TOKENS
