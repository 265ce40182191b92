"""A Hugging Face folder of any kind, run by transformers: what the ONNX model that comes of it is compared with.

It is loaded whole, as its users load it. Logits of language models larger than memory are the business of
``reference.py``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.packed import compressed_tensors, loading
from coldpress.networks.inputs import matched


class TorchModel:
    """The model of the class that config.json names, in float32 on the CPU or in its own precision on a GPU.

    Code from the folder runs only with ``trust_remote_code``.
    """

    def __init__(self, folder: Path, threads: int, on_gpu: bool = False, trust_remote_code: bool = False):
        import torch

        self.folder = Path(folder)
        self._device = "cuda" if on_gpu else "cpu"
        if on_gpu and not torch.cuda.is_available():
            raise ColdpressError(
                f"PyTorch finds no GPU here, so {self.folder} cannot run on one", exit_code=WORK_FAILED
            )
        torch.set_num_threads(threads)
        self._model = _load(self.folder, trust_remote_code, None if on_gpu else torch.float32).to(self._device).eval()
        accepted = inspect.signature(self._model.forward).parameters
        self.inputs = [name for name, one in accepted.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by its name; floats as float32."""
        return {name: _array(tensor) for name, tensor in self._call(self._tensors(inputs)).items()}

    def step(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One run with these arrays, to be called as often as one likes; it ends when the device has finished."""
        tensors = self._tensors(inputs)
        return lambda: {name: _array(tensor) for name, tensor in self._call(tensors).items()}

    def generate(
        self,
        inputs: Mapping[str, np.ndarray],
        max_new_tokens: int,
        stop: Callable[[list[int]], bool] = lambda tokens: False,
    ) -> list[int]:
        """The greedy answer to one sample: the new tokens of a decoder, or all that an encoder-decoder says.

        ``stop`` is asked after each token whether the answer so far is enough.
        """
        if not self._model.can_generate():
            raise ColdpressError(f"{type(self._model).__name__} in {self.folder} does not generate text")
        return greedy(self._model, self._tensors(inputs), max_new_tokens, stop)

    def _call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            found = self._model(**tensors)
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import torch

        given = matched(inputs, self._taken(inputs), str(self.folder))
        kind = next(self._model.parameters()).dtype
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
        return {
            name: tensor.to(self._device, kind if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }

    def _taken(self, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """The inputs of the model; the main one alone where the data has but one array, of whatever name."""
        return [self._model.main_input_name] if len(inputs) == 1 else self.inputs


def greedy(model: Any, tensors: Mapping[str, Any], max_new_tokens: int, stop: Callable[[list[int]], bool]) -> list[int]:
    """What transformers' ``generate`` makes of one sample by greedy search, as of `TorchModel.generate`."""
    import torch

    begins = 0 if model.config.is_encoder_decoder else tensors["input_ids"].shape[1]

    def enough(ids: Any, scores: Any, **settings: Any) -> Any:
        return torch.tensor([stop(ids[0, begins:].tolist())], device=ids.device)

    search: dict[str, Any] = {"do_sample": False, "num_beams": 1, "stopping_criteria": [enough]}
    if _is_longer_than_its_window(model, tensors):
        search["return_timestamps"] = True  # by which transformers finds where the next window begins
    with torch.inference_mode():
        ids = model.generate(**tensors, max_new_tokens=max_new_tokens, **search)
    spoken: list[int] = ids[0, begins:].tolist()
    return spoken


def _is_longer_than_its_window(model: Any, tensors: Mapping[str, Any]) -> bool:
    window = getattr(model.config, "max_source_positions", None)
    found = tensors.get("input_features")
    return bool(window and found is not None and found.shape[-1] > 2 * window and model.config.model_type == "whisper")


def _load(folder: Path, trust_remote_code: bool, dtype: Any) -> Any:
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = [getattr(transformers, name, None) for name in config.get("architectures") or ()]
    cls = next((found for found in named if found is not None), transformers.AutoModel)
    if (config.get("quantization_config") or {}).get("quant_method") == compressed_tensors.METHOD:
        loading.register()
    trust = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        return cls.from_pretrained(str(folder), dtype=dtype or "auto", **trust)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(f"transformers cannot load {folder}: {reason}", exit_code=WORK_FAILED) from error


def _array(tensor: Any) -> np.ndarray:
    found: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return found
