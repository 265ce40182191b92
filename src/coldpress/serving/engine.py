"""The engine of generation: a chat model in ONNX, opened once by onnxruntime-genai, answers prompts token by token.

Chat, metrics, verification and servers share it. Answers take turns token by token, as they share the processors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from coldpress.errors import WORK_FAILED, ColdpressError, did_you_mean
from coldpress.graphs.adapter_file import check_fits
from coldpress.graphs.lora_metadata import read_slots
from coldpress.models.onnx_folder import graph_file, read_genai_config, stop_tokens
from coldpress.target import physical_cores


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many there may be.

    ``temperature`` 0 takes the likeliest. Else one is drawn from the ``top_k`` likeliest (0: all) of those that make up
    ``top_p`` of the probability, which is divided by ``repetition_penalty`` for what was said before. Equal ``seed``,
    equal answers.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As search options of onnxruntime-genai, without the length."""
        if not self.temperature:
            return {"do_sample": False, "num_beams": 1, "repetition_penalty": self.repetition_penalty}
        drawn = {"do_sample": True, "num_beams": 1, "temperature": self.temperature, "top_p": self.top_p}
        seed = {} if self.seed is None else {"random_seed": self.seed}
        return {**drawn, "top_k": self.top_k, "repetition_penalty": self.repetition_penalty, **seed}


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like, in a language of llguidance: ``json_schema``, ``regex`` or ``lark_grammar``."""

    kind: Literal["json_schema", "regex", "lark_grammar"]
    text: str


def json_grammar(schema: Mapping[str, Any]) -> Grammar:
    """JSON that fits a schema, on one line: where any blanks may stand, a small model writes blanks for ever."""
    return Grammar("json_schema", json.dumps({"x-guidance": {"whitespace_flexible": False}, **schema}))


GREEDY = Sampling()
#: for a model that comes without settings of its own: likeliest tokens alone make small models go round in circles
USUAL = Sampling(temperature=0.5, top_p=0.9, top_k=40, repetition_penalty=1.05)


def own_sampling(folder: Path) -> Sampling:
    """The settings that the makers of a model recommend, as its genai_config.json has them; else the usual ones."""
    search = read_genai_config(folder).get("search", {})
    if not search.get("do_sample"):
        return USUAL
    known = ("temperature", "top_p", "top_k", "repetition_penalty")
    return replace(USUAL, **{"repetition_penalty": 1.0, **{name: search[name] for name in known if name in search}})


def check_choices(greedy: bool, **given: float | None) -> None:
    """Raise ColdpressError for a setting that greedy answers do not heed; before a model is there."""
    if not greedy and given.get("temperature") != 0:
        return
    drawing = sorted(name for name in ("temperature", "top_p", "top_k", "seed") if given.get(name))
    if drawing:
        other = "--greedy" if greedy else "--temperature 0"
        raise ColdpressError(f"--{drawing[0]} has no effect on greedy answers", hint=f"leave it out, or {other}")


def chosen_sampling(folder: Path, greedy: bool, **given: float | None) -> Sampling:
    """The model's own settings with those that are ``given``; ColdpressError for one that greedy answers do not
    heed."""
    check_choices(greedy, **given)
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not greedy and chosen.get("temperature") != 0:
        return replace(own_sampling(folder), **chosen)
    return replace(GREEDY, **{name: value for name, value in chosen.items() if value})


class TokenStream:
    """An answer in the making: iterating makes its tokens, ``close`` ends it early.

    ``tokens``: those made so far. ``ended``: None while there may be more, then "stop" (the model ended it), "length"
    (there was no room) or "closed". Times are in seconds: ``prompt_s`` for processing the prompt; ``first_token_s``,
    that plus choosing the first token; ``decode_s``, each later token.
    """

    def __init__(self, engine: Engine, prompt_ids: Sequence[int], generator: Any):
        self.tokens: list[int] = []
        self.ended: Literal["stop", "length", "closed"] | None = None
        self._moments = [time.perf_counter()]
        self._steps = self._run(engine, prompt_ids, generator)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._steps)

    def close(self) -> None:
        """No more tokens."""
        self.ended = self.ended or "closed"
        self._steps.close()

    def finished(self) -> TokenStream:
        """Itself, with all its tokens."""
        for _ in self:
            pass
        return self

    @property
    def stopped(self) -> bool:
        """Whether the last token is one of those that end an answer."""
        return self.ended == "stop"

    @property
    def prompt_s(self) -> float:
        return self._moments[1] - self._moments[0]

    @property
    def first_token_s(self) -> float:
        return self._moments[min(2, len(self._moments) - 1)] - self._moments[0]

    @property
    def decode_s(self) -> list[float]:
        later = self._moments[2:]
        return [after - before for before, after in pairwise(later)]

    def _run(self, engine: Engine, prompt_ids: Sequence[int], generator: Any) -> Generator[int, None, None]:
        import numpy as np

        with engine.turn:
            self._moments = [time.perf_counter()]
            generator.append_tokens(np.asarray(prompt_ids, dtype=np.int32))
            self._moments.append(time.perf_counter())
        while not generator.is_done():
            with engine.turn:
                generator.generate_next_token()
                self.tokens.append(int(generator.get_next_tokens()[0]))
                self._moments.append(time.perf_counter())
            yield self.tokens[-1]
        stopped = bool(self.tokens) and self.tokens[-1] in engine.stop_tokens
        self.ended = "stop" if stopped else "length"


class Engine:
    """A model folder opened by onnxruntime-genai, with a fixed number of threads; 0 means one for each core.

    ``adapters``: adapter files by name. ``on_cpu`` ignores the execution provider that the folder names. ``settings``:
    what genai_config.json says of the model; ``context_length``: tokens of a prompt and its answer together. Raises
    ColdpressError for a model that does not open and for an adapter of another model.
    """

    def __init__(
        self, folder: Path, threads: int = 0, adapters: Mapping[str, Path] | None = None, on_cpu: bool = False
    ):
        import onnxruntime_genai as og

        self.folder = Path(folder)
        self.adapters = dict(adapters or {})
        self.settings: dict[str, Any] = read_genai_config(self.folder)["model"]
        self.context_length: int = self.settings["context_length"]
        self.stop_tokens = stop_tokens(self.settings)
        self.turn = Lock()
        for file in self.adapters.values():  # the runtime itself may end the process over a wrong one
            check_fits(file, read_slots(graph_file(self.folder)), self.folder)
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
        self._loaded = og.Adapters(self._model)
        for name, file in self.adapters.items():
            self._loaded.load(str(file), name)

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        adapter: str | None = None,
        past_stop_tokens: bool = False,
        grammar: Grammar | None = None,
    ) -> TokenStream:
        """The answer to a prompt, with an adapter by its name or with the base alone.

        ``past_stop_tokens`` never ends early (to measure time). Raises ColdpressError for an adapter that is not there
        and for a grammar that says nothing.
        """
        import onnxruntime_genai as og

        self.check_adapter(adapter)
        length = min(len(prompt_ids) + sampling.max_new_tokens, self.context_length)
        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=length, min_length=length if past_stop_tokens else 0, **sampling.options)
        if grammar is not None:
            params.set_guidance(grammar.kind, grammar.text)
        try:
            generator = og.Generator(self._model, params)
        except RuntimeError as error:
            if grammar is None:
                raise
            raise ColdpressError(f"no answer can be held to this {grammar.kind}: {error}") from error
        if adapter is not None:
            generator.set_active_adapter(self._loaded, adapter)
        return TokenStream(self, prompt_ids, generator)

    def tokenizer(self) -> Any:
        """onnxruntime-genai's tokenizer of the model. ColdpressError for one that it cannot read."""
        import onnxruntime_genai as og

        try:
            return og.Tokenizer(self._model)
        except RuntimeError as error:
            raise ColdpressError(f"onnxruntime-genai cannot read the tokenizer in {self.folder}: {error}") from error

    def check_adapter(self, name: str | None) -> None:
        """Raise ColdpressError for the name of an adapter that was not given."""
        if name is not None and name not in self.adapters:
            hint = did_you_mean(name, self.adapters) if self.adapters else "name it at the start: --adapter NAME=PATH"
            raise ColdpressError(f"there is no adapter '{name}' here", hint=hint)

    def fitting(self, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
        """So many tokens of a prompt and of its answer as fit into the context: of that, an answer takes half at
        most."""
        return fitting(self.settings, prompt_tokens, new_tokens)


def fitting(settings: Mapping[str, Any], prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """As `Engine.fitting`, for a model that is not open."""
    context = settings["context_length"]
    new = min(new_tokens, context // 2)
    return min(prompt_tokens, context - new), new
