"""A chat model in ONNX on this machine, answering by onnxruntime-genai."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.onnx_folder import read_genai_config, stop_tokens
from coldpress.target import physical_cores


@dataclass(frozen=True)
class GenerationResult:
    """What a model answered and how long it took.

    ``stopped``: the last token is one of the model's stop tokens. ``prompt_s``: processing the prompt;
    ``first_token_s``: that plus choosing the first token; ``decode_s``: each later token.
    """

    tokens: list[int]
    stopped: bool
    first_token_s: float
    prompt_s: float
    decode_s: list[float]


class Generator:
    """A model folder opened by onnxruntime-genai, with a fixed number of threads.

    ``on_cpu`` ignores the execution provider that the folder names. ``settings``: what genai_config.json says of the model.
    """

    def __init__(self, folder: Path, threads: int = 0, on_cpu: bool = False):
        import onnxruntime_genai as og

        self.folder = Path(folder)
        self.settings = read_genai_config(self.folder)["model"]
        config = og.Config(str(self.folder))
        session = {"intra_op_num_threads": threads or physical_cores()}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        if on_cpu:
            config.clear_providers()
        try:
            self._model = og.Model(config)
        except RuntimeError as error:
            message = f"onnxruntime-genai cannot run {self.folder}: {error}"
            raise ColdpressError(message, exit_code=WORK_FAILED) from error

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        past_stop_tokens: bool = False,
        stop: Callable[[list[int]], bool] = lambda tokens: False,
    ) -> GenerationResult:
        """The greedy answer to a prompt; ``past_stop_tokens`` never ends early (to measure time).

        ``stop`` is asked after each token whether the answer so far is enough.
        """
        import onnxruntime_genai as og

        length = min(len(prompt_ids) + max_new_tokens, self.settings["context_length"])
        options = {"max_length": length, "min_length": length if past_stop_tokens else 0}
        params = og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, num_beams=1, repetition_penalty=1.0, **options)
        generator = og.Generator(self._model, params)
        start = time.perf_counter()
        generator.append_tokens(np.asarray(prompt_ids, dtype=np.int32))
        moments, tokens = [time.perf_counter()], list[int]()
        while not generator.is_done() and not stop(tokens):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            moments.append(time.perf_counter())
        stopped = bool(tokens) and tokens[-1] in stop_tokens(self.settings)
        return GenerationResult(
            tokens, stopped, moments[min(1, len(tokens))] - start, moments[0] - start, np.diff(moments)[1:].tolist()
        )


def generate(folder: Path, prompt_ids: Sequence[int], max_new_tokens: int, threads: int = 0) -> GenerationResult:
    """Load a model folder and answer one prompt greedily."""
    return Generator(folder, threads).generate(prompt_ids, max_new_tokens)


def fitting(settings: Mapping[str, Any], prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """So many tokens of a prompt and of its answer as fit into the context of a model: of that, an answer takes half at most."""
    context = settings["context_length"]
    new = min(new_tokens, context // 2)
    return min(prompt_tokens, context - new), new
