"""The models of a server, by the names that requests call them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.adapter_file import SUFFIX
from coldpress.models.onnx_folder import read_genai_config
from coldpress.serving.encoder import Encoder
from coldpress.serving.engine import Engine, Sampling, own_sampling
from coldpress.serving.prompts import Message, chat_template, prompt_ids, text_ids
from coldpress.serving.scheduler import Scheduler

#: between the name of a model and that of its adapter
BETWEEN = ":"


@dataclass(frozen=True)
class Limits:
    """``parallel``: answers of a model that are made at a time. ``waiting``: those that may stand in line for it.

    ``max_new_tokens``: the longest answer where a request does not say. ``threads``: of each model; 0: all processors.
    """

    parallel: int = 4
    waiting: int = 64
    max_new_tokens: int = 1024
    threads: int = 0


class ChatModel:
    """A model that generates, with its adapters."""

    def __init__(self, folder: Path, adapters: Mapping[str, Path], limits: Limits):
        self.engine = Engine(folder, limits.threads, adapters)
        self.sampling: Sampling = own_sampling(folder)
        self.template = chat_template(folder)
        self.limits = limits
        self.scheduler = Scheduler(self.engine, limits.parallel, limits.waiting)
        self._tokenizer, self._turn = self.engine.tokenizer(), Lock()

    @property
    def length(self) -> int:
        return self.engine.context_length

    def chat_ids(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """The tokens of a chat; ValueError where the template refuses it."""
        with self._turn:  # the tokenizer is told how to begin a text before it reads one
            return prompt_ids(self._tokenizer, self.engine.folder, messages, tools)

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a text that is to be continued; ValueError where it cannot be read."""
        with self._turn:
            return text_ids(self._tokenizer, text)

    def decoder(self) -> Any:
        """A stream that makes tokens into text."""
        return self._tokenizer.create_stream()


@dataclass(frozen=True)
class Served:
    """What answers to a name: a model, and for a model that generates perhaps one of its adapters."""

    name: str
    model: ChatModel | Encoder
    adapter: str | None = None
    parent: str | None = None


@dataclass
class Catalog:
    """Served models by name; an adapter is called ``MODEL:ADAPTER``, and by its own name where only one has it."""

    served: dict[str, Served] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    def add(self, name: str, folder: Path, limits: Limits) -> None:
        """Open a result; ColdpressError for one that is no such, and for a name that is taken."""
        model: ChatModel | Encoder
        names: dict[str | None, str]
        if read_genai_config(folder):
            model = ChatModel(folder, adapters_in(folder), limits)
            names = {None: name, **{adapter: f"{name}{BETWEEN}{adapter}" for adapter in model.engine.adapters}}
        else:
            model, names = Encoder(folder, limits.threads), {None: name}
        for adapter, called in names.items():
            if called in self.served:
                raise ColdpressError(f"two models are called '{called}'", hint="write NAME=OUT for one of them")
            self.served[called] = Served(called, model, adapter, name if adapter else None)

    def find(self, name: str) -> Served:
        """What is called so; ColdpressError with the closest name."""
        if name in self.served:
            return self.served[name]
        short = [one for one in self.served.values() if one.adapter == name]
        if len(short) == 1:
            return short[0]
        raise ColdpressError(f"there is no model '{name}' here", hint=did_you_mean(name, self.served))

    @property
    def chat_models(self) -> dict[str, ChatModel]:
        """Those that generate, once each, by their own names."""
        return {
            one.name: one.model for one in self.served.values() if isinstance(one.model, ChatModel) and not one.adapter
        }


def adapters_in(folder: Path) -> dict[str, Path]:
    """The adapter files of a folder by name."""
    return {file.name.removesuffix(SUFFIX): file for file in sorted(folder.glob(f"*{SUFFIX}"))}
