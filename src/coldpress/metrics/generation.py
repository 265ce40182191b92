"""How fast a chat model answers: time to the first token, prompt speed and decode speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, ClassVar

import numpy as np

from coldpress.data.texts import heldout
from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.onnx_folder import read_genai_config
from coldpress.parts import Context, Metric, Value
from coldpress.serving.engine import Engine, Sampling, TokenStream


@dataclass(frozen=True)
class Generation(Metric):
    """Speed of onnxruntime-genai with a fixed number of threads, batch 1, after one run that is not counted.

    Prompt and decode are reported apart: they are bound by different things (arithmetic, memory). Values are medians
    over the repeats; ``_p95`` is the value that one repeat (or one token) in twenty is worse than. A prompt that does
    not fit into the model's context is cut; ``asked_prompt_tokens`` then says what was asked for.
    """

    prompt_tokens: int = field(default=256, metadata={"help": "length of the prompt, taken from held-out text"})
    new_tokens: int = field(default=64, metadata={"help": "tokens generated after the prompt"})
    repeats: int = field(default=5, metadata={"help": "timed runs after the warm-up"})

    values: ClassVar[Mapping[str, Value]] = {
        "first_token_ms": Value("lower", "ms"),
        "first_token_ms_p95": Value("lower", "ms"),
        "prompt_tokens_per_second": Value("higher", "tok/s"),
        "decode_tokens_per_second": Value("higher", "tok/s"),
        "decode_tokens_per_second_p95": Value("higher", "tok/s"),
        "token_ms_p95": Value("lower", "ms"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime-genai",)
    is_timed: ClassVar[bool] = True

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        if not read_genai_config(model.path):
            raise ColdpressError(f"no genai_config.json in {model.path}, so onnxruntime-genai cannot run it")
        if not ctx.target.is_here:
            raise ColdpressError(f"{ctx.target.provider} is not on this machine, so its speed cannot be measured here")
        engine = Engine(model.path, ctx.target.thread_count)
        prompt_tokens, new_tokens = engine.fitting(self.prompt_tokens, self.new_tokens)
        prompt = _prompt(model, prompt_tokens)
        runs: list[TokenStream] = []
        for done in range(self.repeats + 1):
            run = engine.generate(prompt, Sampling(new_tokens), past_stop_tokens=True).finished()
            runs += [run] if done else []
            ctx.progress("timing generation", done + 1, self.repeats + 1)
        shorter = {"asked_prompt_tokens": self.prompt_tokens} if prompt_tokens < self.prompt_tokens else {}
        counts = {"threads": ctx.target.thread_count, "prompt_tokens": len(prompt), "new_tokens": new_tokens}
        return {**_summary(runs, len(prompt)), **counts, **shorter}


def _prompt(model: Model, length: int) -> list[int]:
    """Exactly ``length`` tokens of text; short texts are repeated."""
    windows = heldout.windows(model.path, max(8, length), 1)
    return [int(token) for token in islice(cycle(windows[0]), length)]


def _summary(runs: list[TokenStream], prompt_tokens: int) -> dict[str, float]:
    first = np.array([run.first_token_s for run in runs])
    prompt = np.array([prompt_tokens / run.prompt_s for run in runs])
    steps = [np.array(run.decode_s) for run in runs if run.decode_s]
    if not steps:
        raise ColdpressError("no decode step was timed: the context has no room, or new_tokens is below 2")
    decode = np.array([len(times) / times.sum() for times in steps])
    return {
        "first_token_ms": float(np.median(first)) * 1e3,
        "first_token_ms_p95": float(np.quantile(first, 0.95)) * 1e3,
        "prompt_tokens_per_second": float(np.median(prompt)),
        "decode_tokens_per_second": float(np.median(decode)),
        "decode_tokens_per_second_p95": float(np.quantile(decode, 0.05)),
        "token_ms_p95": float(np.quantile(np.concatenate(steps), 0.95)) * 1e3,
    }
