"""Any model that can be run here, opened so that metrics need not know what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from coldpress.errors import ColdpressError
from coldpress.graphs.scoring import Decoder
from coldpress.graphs.session import Session
from coldpress.measuring.encoder_decoder import EncoderDecoder, is_encoder_decoder
from coldpress.models.model import Model
from coldpress.models.onnx_folder import read_genai_config
from coldpress.networks.torch_model import TorchModel
from coldpress.serving.engine import Engine, Sampling
from coldpress.target import Target

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]
    Stop = Callable[[list[int]], bool]


class Runner(Protocol):
    """A model that is loaded: arrays in, arrays out, both by name."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """All outputs for the inputs of a batch."""

    def step(self, inputs: Arrays) -> Callable[[], object]:
        """The same work, nothing given back, to be timed."""


def open_model(model: Model, target: Target, trust_remote_code: bool = False, *, is_timed: bool = False) -> Runner:
    """An ONNX model with its session options, or a Hugging Face folder by transformers.

    ``is_timed``: as of a `Session`.
    """
    if model.format == "onnx":
        pair = is_encoder_decoder(model.path)
        return (EncoderDecoder(model.path, target, trust_remote_code, is_timed=is_timed) if pair else
                Session(model.path, target, is_timed=is_timed))  # fmt: skip
    return _torch(model, target, trust_remote_code)


class Speaker(Protocol):
    """A language model that answers greedily."""

    def __call__(self, inputs: Arrays, max_new_tokens: int, stop: Stop = lambda tokens: False) -> list[int]:
        """The tokens of the answer to one sample; ``stop`` is asked after each whether they are enough."""


def open_speaker(model: Model, target: Target, trust_remote_code: bool = False) -> Speaker:
    """An ONNX model by onnxruntime-genai, an encoder and its decoder or a Hugging Face folder by transformers."""
    if model.format != "onnx":
        return _torch(model, target, trust_remote_code).generate
    if is_encoder_decoder(model.path):
        return EncoderDecoder(model.path, target, trust_remote_code).generate
    if not read_genai_config(model.path):
        raise ColdpressError(f"no genai_config.json in {model.path}, so onnxruntime-genai cannot run it")
    engine = Engine(model.path, target.thread_count, on_cpu=not target.is_here)

    def answer(inputs: Arrays, max_new_tokens: int, stop: Stop = lambda tokens: False) -> list[int]:
        ids = inputs["input_ids"][0]
        prompt = ids[inputs["attention_mask"][0] == 1] if "attention_mask" in inputs else ids
        stream = engine.generate([int(token) for token in prompt], Sampling(max_new_tokens))
        if not any(stop(stream.tokens) for _ in stream):
            return stream.tokens
        stream.close()
        return stream.tokens

    return answer


def open_scorer(model: Model, target: Target, trust_remote_code: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """A function from token ids ``[tokens]`` to the logits ``[tokens, vocab]`` of a causal language model, float32."""
    if model.format == "onnx":
        provider = target.provider if target.is_here else "CPUExecutionProvider"
        return Decoder(model.path, target.thread_count, provider).logits
    run = _torch(model, target, trust_remote_code).run
    return lambda window: run({"input_ids": window[None]})["logits"][0]


def _torch(model: Model, target: Target, trust_remote_code: bool) -> TorchModel:
    return TorchModel(model.path, target.thread_count, target.device == "gpu", trust_remote_code)
