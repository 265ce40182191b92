"""How far an ONNX chat model is from its source: on held-out text, token by token, and in its own answers.

On text: the Kullback-Leibler divergence KL(source || model) of the next-token distributions, how often both prefer
the same token, and both perplexities. In answers: the model replies greedily to a few chat prompts, and the source,
shown prompt and reply, tells at how many positions it would have written the same token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.measuring.losses import log_softmax, perplexity, token_losses
from coldpress.measuring.prompts import Source, compare_prompts
from coldpress.measuring.source_answers import SourceAnswer, finish
from coldpress.measuring.spread import spread, standard_error
from coldpress.metrics.perplexity import scoring_provider
from coldpress.models import adapter_folder
from coldpress.models.checkpoint import Checkpoint
from coldpress.models.model import Model
from coldpress.models.onnx_folder import read_genai_config, stop_tokens
from coldpress.networks.referee import MAX_MEMORY, Voice, reference_of, voice_of_base
from coldpress.networks.reference import Reference
from coldpress.parts import Context, Metric, Value
from coldpress.serving.engine import Engine, Sampling

QUESTIONS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the larger of two numbers.",
)
#: what configurations call the longest input of a network
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length")
_ROWS = 64
_LONGEST_PERIOD = 12
_LOOPS_FROM = 0.5
_GOES_ALONG_FROM = 0.75
#: how often the weights of a source are read for its own answers, and of how large a one: each time takes seconds
_ROUNDS, _ASKED_UP_TO_BYTES = 4, 2e9


@dataclass(frozen=True)
class Divergence(Metric):
    """Compares a model, ONNX or a Hugging Face folder, with ``ctx.source``, the Hugging Face folder it was made from.

    Where that is a base with an adapter, which was merged into it, it is compared with PEFT's network.
    """

    windows: int = field(default=8, metadata={"help": "how many windows of text to compare on"})
    tokens: int = field(default=256, metadata={"help": "tokens in a window"})
    files: tuple[str, ...] = field(default=(), metadata={"help": "text or jsonl files instead of the built-in text"})
    new_tokens: int = field(default=40, metadata={"help": "length of each answer in tokens"})
    max_memory: float | None = field(default=None, metadata={"help": MAX_MEMORY})
    trust_remote_code: bool = field(default=False, metadata={"help": "run model code from the source folder"})

    values: ClassVar[Mapping[str, Value]] = {
        "kl": Value("lower", "nats"),
        "kl_p99": Value("lower", "nats"),
        "top1_agreement": Value("higher"),
        "perplexity": Value("lower"),
        "source_perplexity": Value("lower"),
        "perplexity_ratio": Value("lower"),
        "generation_agreement": Value("higher"),
        "looping_answers": Value("lower"),
        "stop_tokens_missing": Value("lower"),
        "prompts_differ": Value("lower"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")
    reads: ClassVar[tuple[str, ...]] = ("files",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime-genai", "transformers")
    version: ClassVar[int] = 7

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        """The numbers, plus ``answers`` and how they were scored.

        A folder without genai_config.json cannot answer: the numbers about answers are then left out.
        """
        if ctx.source is None or ctx.source.format not in ("hf", "adapter"):
            raise ColdpressError("divergence needs the Hugging Face model to compare with")
        source = adapter_folder.base_of(ctx.source.path)
        chats = model.format == "onnx" and bool(read_genai_config(model.path))
        answers = self._answers(model.path, source, ctx) if chats else []
        tokens = min(self.tokens, context_length(source) or self.tokens)
        windows = heldout.named_windows(source, tokens, self.windows, self.files)
        texts = [window for _, window in windows]
        reference, voice = self._reference(ctx.source)
        scores = iter(reference.logits([*texts, *(answer.sequence() for answer in answers)]))
        found, remark = self._logits(model, texts, ctx)
        numbers = _on_text(windows, scores, found, ctx)
        for answer in answers:
            answer.judge(next(scores), reference)
        if answers:
            self._ask_source(answers, (model.path, source), reference, ctx)
        return {
            **numbers,
            **_on_answers(answers),
            **({"questions_left_out": len(QUESTIONS) - len(answers)} if chats else {}),
            **(_stops(model.path, source) if answers else {}),
            **compare_prompts(source, model.path, self.files, self.trust_remote_code),
            "scored_with": scoring_provider(ctx) if model.format == "onnx" else "torch",
            "reference": {**asdict(voice), "says": f"{voice.says} {remark}".strip()},
        }

    def _reference(self, source: Model) -> tuple[Reference, Voice]:
        if source.format == "hf":
            return reference_of(source.path, self.trust_remote_code, self.max_memory)
        from coldpress.networks.adapted_reference import AdaptedReference

        folder = adapter_folder.read(source.path)
        [adapter] = folder.adapters.values()
        voice = voice_of_base(folder.base, self.trust_remote_code)
        return AdaptedReference(folder.base, adapter, self.trust_remote_code), voice

    def _logits(self, model: Model, windows: list[np.ndarray], ctx: Context) -> tuple[Iterable[np.ndarray], str]:
        """The model's logits, and what is to be said of how it was read."""
        if model.format == "hf":
            network, voice = reference_of(model.path, self.trust_remote_code, self.max_memory)
            remark = f"The result itself was read by coldpress, as {voice.why}" if voice.by == "coldpress" else ""
            return network.logits(windows), remark
        decoder = Decoder(model.path, ctx.target.thread_count, scoring_provider(ctx))
        return map(decoder.logits, windows), ""

    def _answers(self, folder: Path, source: Path, ctx: Context) -> list[Answer]:
        """Answers to prompts as transformers makes them; those that do not fit into the context are left out."""
        asked, tokenizer = Source(source, self.trust_remote_code), heldout.load_tokenizer(folder)
        engine = Engine(folder, ctx.target.thread_count, on_cpu=not ctx.target.is_here)
        answers = []
        for question in QUESTIONS:
            prompt = asked.prompt_ids([{"role": "user", "content": question}])
            room, new_tokens = engine.fitting(len(prompt), self.new_tokens)
            if room == len(prompt):
                result = engine.generate(prompt, Sampling(new_tokens)).finished()
                written = tokenizer.decode(result.tokens)
                answers.append(Answer(question, prompt, result.tokens, written, result.stopped, new_tokens))
        return answers

    def _ask_source(
        self, answers: list[Answer], folders: tuple[Path, Path], reference: Reference, ctx: Context
    ) -> None:
        """Put the source's own answers beside the model's, as far as that costs seconds; ``folders``: of both."""
        folder, source = folders
        stops = source_stop_tokens(source)
        own = [SourceAnswer(one.prompt, one.limit, stops, list(one.tokens)) for one in answers]
        for beside, answer in zip(own, answers, strict=True):
            beside.judge(answer.choices)
        weights = sum(file.stat().st_size for file in Checkpoint(source).files)
        rounds = _ROUNDS if weights <= _ASKED_UP_TO_BYTES else 0
        opened = partial(Engine, folder, ctx.target.thread_count, None, not ctx.target.is_here)
        finish(own, reference, opened, rounds, ctx)
        tokenizer = heldout.load_tokenizer(folder)
        for beside, answer in zip(own, answers, strict=True):
            answer.source, answer.source_is_whole = tokenizer.decode(beside.tokens), beside.is_whole


@dataclass
class Answer:
    """A model's reply of at most ``limit`` tokens to a question, and what the source says to it: its ``choices`` at
    each place of the reply, and what it answers itself."""

    question: str
    prompt: list[int]
    tokens: list[int]
    text: str
    ended: bool
    limit: int
    choices: list[int] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    loops: bool = False
    source: str = ""
    source_is_whole: bool = False

    def sequence(self) -> np.ndarray:
        """Prompt and reply, without the last token, which nothing follows."""
        return np.array([*self.prompt, *self.tokens[:-1]], dtype=np.int64)

    def judge(self, source_logits: np.ndarray, reference: Reference) -> None:
        """Note where the source agrees, and whether the reply is caught in a loop that is not the source's.

        Any model goes along with a loop that is already there, so what counts is whether the source agreed up to the
        second round. If it did not, and does not loop on its own either, the loop is the model's fault.
        """
        self.choices = source_logits[len(self.prompt) - 1 :].argmax(axis=-1).tolist()
        self.agreed = [own == said for own, said in zip(self.choices, self.tokens, strict=True)]
        if not _is_loop(self.tokens):
            return
        start, _, period = repeated_run(self.tokens)
        if np.mean(self.agreed[: start + 2 * period]) < _GOES_ALONG_FROM:
            self.loops = not _is_loop(reference.greedy(self.prompt, len(self.tokens)))

    def details(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "ended": self.ended,
            "agreement": float(np.mean(self.agreed)),
            "repetition": repeated_run(self.tokens)[1] / len(self.tokens),
            "loops": self.loops,
            "source": self.source,
            "source_is_whole": self.source_is_whole,
        }


def kl_divergence(source: np.ndarray, model: np.ndarray) -> np.ndarray:
    """KL(source || model) in nats at each position, float64 [tokens], from two sets of logits [tokens, vocab]."""
    if source.shape != model.shape:
        raise ColdpressError(f"the model gives logits {list(model.shape)}, its source {list(source.shape)}")
    parts = []
    for start in range(0, len(source), _ROWS):
        expected = log_softmax(source[start : start + _ROWS])
        difference = expected - log_softmax(model[start : start + _ROWS])
        parts.append((np.exp(expected) * difference).sum(axis=-1, dtype=np.float64))
    return np.concatenate(parts)


def repeated_run(tokens: Sequence[int]) -> tuple[int, int, int]:
    """The longest run that says a piece of at most 12 tokens three times or more: start, length, piece; or zeros."""
    longest = (0, 0, 0)
    for period in range(1, min(_LONGEST_PERIOD, len(tokens) // 3) + 1):
        same = 0
        for index, (earlier, later) in enumerate(zip(tokens, tokens[period:], strict=False)):
            same = same + 1 if earlier == later else 0
            if same >= 2 * period and same + period > longest[1]:
                longest = (index - same + 1, same + period, period)
    return longest


def _is_loop(tokens: Sequence[int]) -> bool:
    """Whether at least half of a reply of some length is one repeated piece."""
    return len(tokens) >= _LONGEST_PERIOD and repeated_run(tokens)[1] >= _LOOPS_FROM * len(tokens)


def _on_text(
    windows: list[tuple[str, np.ndarray]], scores: Iterable[np.ndarray], found: Iterable[np.ndarray], ctx: Context
) -> dict[str, Any]:
    """The numbers over all windows, and under ``texts`` those of each text."""
    by_text: dict[str, _Sums] = {}
    for done, ((name, window), expected, logits) in enumerate(zip(windows, scores, found, strict=False), start=1):
        by_text.setdefault(name, _Sums()).add(window, expected, logits)
        ctx.progress("comparing with the source", done, len(windows))
    whole = _Sums()
    for sums in by_text.values():
        whole.join(sums)
    texts = {name: sums.numbers() for name, sums in by_text.items()}
    return {**whole.numbers(), "kl_spread": spread(np.concatenate(whole.kl)), "texts": texts}


@dataclass
class _Sums:
    """What is known of each token of some windows."""

    kl: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)
    source_losses: list[np.ndarray] = field(default_factory=list)

    def add(self, window: np.ndarray, expected: np.ndarray, logits: np.ndarray) -> None:
        self.kl.append(kl_divergence(expected, logits))
        self.same.append(expected.argmax(axis=-1) == logits.argmax(axis=-1))
        self.losses.append(token_losses(logits, window))
        self.source_losses.append(token_losses(expected, window))

    def join(self, other: _Sums) -> None:
        for mine, more in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.extend(more)

    def numbers(self) -> dict[str, Any]:
        every, own, source = np.concatenate(self.kl), perplexity(self.losses), perplexity(self.source_losses)
        return {
            "kl": float(np.maximum(every.mean(), 0.0)),
            "kl_p99": float(np.quantile(every, 0.99)),
            "top1_agreement": float(np.concatenate(self.same).mean()),
            "top1_error": standard_error(np.concatenate(self.same)),
            "perplexity": own,
            "source_perplexity": source,
            "perplexity_ratio": own / source,
            "compared_tokens": len(every),
        }


def _on_answers(answers: list[Answer]) -> dict[str, Any]:
    if not answers:
        return {}
    written = sum(len(answer.tokens) for answer in answers)
    return {
        "generation_agreement": sum(sum(answer.agreed) for answer in answers) / max(1, written),
        "looping_answers": sum(answer.loops for answer in answers),
        "answers": [answer.details() for answer in answers],
    }


def _stops(folder: Path, source: Path) -> dict[str, Any]:
    """The stop tokens of the source that the model does not know."""
    missing = source_stop_tokens(source) - stop_tokens(read_genai_config(folder)["model"])
    return {"stop_tokens_missing": len(missing), "missing_stop_tokens": sorted(missing)}


def source_stop_tokens(folder: Path) -> set[int]:
    """The stop tokens of a Hugging Face folder: generation_config.json goes before config.json."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found = stop_tokens(settings) or stop_tokens(settings.get("text_config") or {})
        if found:
            return found
    return set()


def context_length(folder: Path) -> int | None:
    """The tokens that a Hugging Face model takes at most, where its configuration says it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = {**config, **(config.get("text_config") or {})}
    return next((int(settings[name]) for name in _CONTEXT if settings.get(name)), None)
