"""Any model that can be run here, opened so that metrics need not know what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from coldpress.errors import ColdpressError
from coldpress.graphs.runtime import Generator, read_genai_config
from coldpress.graphs.session import Session
from coldpress.model import Model
from coldpress.networks.torch_model import TorchModel
from coldpress.target import Target

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]


class Runner(Protocol):
    """A model that is loaded: arrays in, arrays out, both by name."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """All outputs for the inputs of a batch."""

    def step(self, inputs: Arrays) -> Callable[[], object]:
        """The same work, nothing given back, to be timed."""


def open_model(model: Model, target: Target, trust_remote_code: bool = False) -> Runner:
    """An ONNX model with its session options, or a Hugging Face folder by transformers."""
    if model.format == "onnx":
        return Session(model.path, target, model.notes.get("session"))
    return _torch(model, target, trust_remote_code)


def open_generator(model: Model, target: Target, trust_remote_code: bool = False) -> Callable[[Arrays, int], list[int]]:
    """A function from one sample and a number of tokens to the tokens of the model's greedy answer."""
    if model.format != "onnx":
        return _torch(model, target, trust_remote_code).generate
    if not read_genai_config(model.path):
        raise ColdpressError(f"no genai_config.json in {model.path}, so onnxruntime-genai cannot run it")
    generator = Generator(model.path, target.thread_count, on_cpu=not target.is_here)

    def answer(inputs: Arrays, max_new_tokens: int) -> list[int]:
        ids = inputs["input_ids"][0]
        mask = inputs.get("attention_mask")
        prompt = ids if mask is None else ids[mask[0] == 1]
        return generator.generate([int(token) for token in prompt], max_new_tokens).tokens

    return answer


def _torch(model: Model, target: Target, trust_remote_code: bool) -> TorchModel:
    return TorchModel(model.path, target.thread_count, target.device == "gpu", trust_remote_code)
