"""Whether an architecture comes out right, tried on a tiny model before any work: ``python -m coldpress.graphs.trial
REQUEST.json``.

A tiny random model of the user's own configuration is pressed in float32, and its logits are compared with
transformers': after short and long prompts (beyond windows and the context that was trained on) and token by token.
mobius reads many architectures that it does not compute as transformers does; what differs here would differ at any
size.

The last line that the process prints is its answer as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError, raised_as

#: relative to the spread of the logits, what float32 may differ by
CLOSE = 1e-4
_LENGTHS, _STEPS, _FIRST_ID = (5, 40, 100), 3, 3
#: what configurations call the tokens that a decoder takes at most
_CONTEXTS = ("max_position_embeddings", "max_target_positions")
_REQUEST = {
    "exporter": "mobius",
    "provider": "cpu",
    "dtype": "float32",
    "precision": {
        "dtype": "float32",
        "linear": None,
        "head": None,
        "embedding": None,
        "accuracy_level": 0,
        "scale_dtype": "float32",
        "overrides": [],
    },
    "logits": "all",
    "genai": False,
}


@dataclass(frozen=True)
class Verdict:
    """``is_right``: the pressed model computes what transformers computes. ``why``: what is missing, where it does not.

    ``hint``: what to do about it, where that is known. ``difference``: of logits or hidden states, the largest,
    relative to their spread; None where it did not come to that.
    """

    is_right: bool
    why: str = ""
    difference: float | None = None
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def try_out(folder: Path, *, trust_remote_code: bool = False) -> Verdict:
    """Press a tiny model of the configuration in ``folder`` and compare; of a multimodal one the text model, with the
    whole.

    Imports torch, transformers, mobius and ONNX Runtime.
    """
    from coldpress.graphs.capture.mobius.capture import registered_name
    from coldpress.models.text_part import is_multimodal, take_text_model
    from coldpress.networks.tiny import tiny_model

    with tempfile.TemporaryDirectory(prefix="coldpress-trial-") as place:
        tiny, text, pressed = (Path(place) / name for name in ("tiny", "text", "pressed"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        try:
            if not is_multimodal(config):
                registered_name(config)
            model = tiny_model(folder, tiny, trust_remote_code=trust_remote_code)
            if is_multimodal(config):
                text.mkdir()
                take_text_model(tiny, text, trust_remote_code=trust_remote_code)
                tiny = text
        except ColdpressError as error:
            return Verdict(False, error.message, hint=error.hint)
        return judge(model, tiny, pressed, trust_remote_code=trust_remote_code)


def judge(model: Any, folder: Path, output: Path, *, trust_remote_code: bool = False) -> Verdict:
    """Press ``folder``, which holds ``model``, into ``output``, and compare the two."""
    output.mkdir()
    try:
        with raised_as(lambda error: ColdpressError(f"{type(error).__name__}: {_first_line(error)}")):
            _press(folder, output, trust_remote_code)
            difference = max(_differences(model, output))
    except ColdpressError as error:
        return Verdict(False, error.message, hint=error.hint)
    if difference < CLOSE:
        return Verdict(True, difference=difference)
    return Verdict(False, f"its graph computes something else (by {difference:.1g} of the spread)", difference)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def _press(folder: Path, output: Path, trust_remote_code: bool) -> None:
    from coldpress.graphs import worker
    from coldpress.graphs.layout import read_layouts
    from coldpress.graphs.stream import fill
    from coldpress.quant.rtn import rtn

    question = output / "request.json"
    request = {**_REQUEST, "folder": str(folder), "output": str(output), "trust_remote_code": trust_remote_code}
    question.write_text(json.dumps(request), encoding="utf-8")
    worker.main(question)
    for layout in read_layouts(output / "layouts.json"):
        fill(layout, output, rtn, threads=1, progress=lambda done, total: None)


def _differences(model: Any, output: Path) -> list[float]:
    import torch

    with torch.no_grad():
        if (output / "encoder.onnx").exists():
            return _of_pair(model, _Graph(output / "encoder.onnx"), _Graph(output / "decoder.onnx"))
        graph = _Graph(output / "model.onnx")
        return _of_decoder(model, graph) if "logits" in graph.outputs else _of_encoder(model, graph)


class _Graph:
    """A graph in ONNX Runtime, which is given only what it asks for."""

    def __init__(self, file: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, **values: np.ndarray) -> dict[str, np.ndarray]:
        found = self._session.run(None, {name: value for name, value in values.items() if name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))

    def decode(self, ids: np.ndarray, cuts: Sequence[int], **values: np.ndarray) -> np.ndarray:
        """The logits of token ids ``[1, tokens]`` that come in pieces, each on the state that those before left."""
        done, logits = 0, []
        past = {name: _nothing(value) for name, value in self.inputs.items() if name.startswith("past")}
        for part in np.split(ids, cuts, axis=1):
            mask = np.ones((1, done + part.shape[1]), np.int64)
            positions = np.arange(done, mask.shape[1])[None]
            given = {"input_ids": part, "decoder_input_ids": part, "attention_mask": mask, "position_ids": positions}
            found = self.run(**given, **past, **values)
            past = {name: found[_present(name)] for name in past}
            logits.append(found["logits"])
            done += part.shape[1]
        return np.concatenate(logits, axis=1)


def _present(past: str) -> str:
    return (
        past.replace("past_key_values", "present") if "past_key_values" in past else past.replace("past", "present", 1)
    )


def _nothing(value: Any) -> np.ndarray:
    shape = [1, *(size if isinstance(size, int) else 0 for size in value.shape[1:])]
    return np.zeros(shape, np.float16 if value.type == "tensor(float16)" else np.float32)


def _ids(count: int, seed: int) -> np.ndarray:
    from coldpress.networks.tiny import VOCABULARY

    return np.random.default_rng(seed).integers(_FIRST_ID, VOCABULARY - 20, (1, count))


def _lengths(model: Any) -> list[int]:
    """Lengths of prompts that leave room for some tokens in the tiny context."""
    config = model.config.get_text_config(decoder=True)
    limit = next((found for name in _CONTEXTS if (found := getattr(config, name, None))), max(_LENGTHS) * 2)
    return [length for length in _LENGTHS if length + _STEPS <= limit]


def _difference(ours: np.ndarray, theirs: Any) -> float:
    wanted = np.asarray(theirs)
    if ours.shape != wanted.shape:
        raise ColdpressError(f"its graph gives {list(ours.shape)} where transformers gives {list(wanted.shape)}")
    difference = float(np.abs(ours - wanted).max() / max(float(wanted.std()), 1e-6))
    return difference if np.isfinite(difference) else float("inf")


def _of_decoder(model: Any, graph: _Graph) -> list[float]:
    import torch

    found = []
    for length in _lengths(model):
        ids = _ids(length + _STEPS, seed=length)
        cuts = list(range(length, length + _STEPS))
        output = model(torch.from_numpy(ids[:, :length]), use_cache=True)
        theirs = [output.logits]
        while len(theirs) <= _STEPS and output.get("past_key_values") is not None:
            at = length + len(theirs) - 1
            output = model(
                torch.from_numpy(ids[:, at : at + 1]), past_key_values=output.past_key_values, use_cache=True
            )
            theirs.append(output.logits)
        count = length + len(theirs) - 1
        ours = graph.decode(ids[:, :count], cuts[: len(theirs) - 1])
        found.append(_difference(ours, torch.cat(theirs, dim=1)))
    return found


def _of_pair(model: Any, encoder: _Graph, decoder: _Graph) -> list[float]:
    import torch

    found = []
    for length in _lengths(model):
        heard = {model.main_input_name: _main_input(model, length)}
        answer = _ids(length, seed=length + 1)
        given = {**heard, "decoder_input_ids": answer}
        theirs = model(**{name: torch.from_numpy(value) for name, value in given.items()})
        mask = np.ones((1, next(iter(heard.values())).shape[1]), np.int64)
        (hidden, *_) = encoder.run(**heard, attention_mask=mask).values()
        ours = decoder.decode(answer, [2, 3], encoder_hidden_states=hidden, encoder_attention_mask=mask)
        found += [_difference(hidden, theirs.encoder_last_hidden_state), _difference(ours, theirs.logits)]
    return found


def _of_encoder(model: Any, graph: _Graph) -> list[float]:
    """Hidden states of an encoder, padding left out; those of a model with a head are its base model's."""
    import torch

    base = getattr(model, model.base_model_prefix, model)
    found = []
    for length in _lengths(model)[:2]:
        given = {model.main_input_name: _main_input(model, length)}
        shown = np.ones((1, 1), np.int64)
        if "input_ids" in given:
            shown = np.ones((1, length), np.int64)
            shown[:, length - 2 :] = 0
            given["attention_mask"] = shown
        if "token_type_ids" in graph.inputs:
            kinds = (np.arange(length) > length // 2).astype(np.int64)[None]
            given["token_type_ids"] = kinds if getattr(model.config, "type_vocab_size", 1) > 1 else kinds * 0
        taken = {name: torch.from_numpy(value) for name, value in given.items() if _takes(base, name)}
        theirs, ours = base(**taken).last_hidden_state.numpy(), graph.run(**given)["last_hidden_state"]
        found.append(_difference(ours * shown[..., None], theirs * shown[..., None]))
    return found


def _takes(module: Any, name: str) -> bool:
    import inspect

    return name in inspect.signature(module.forward).parameters


def _main_input(model: Any, length: int) -> np.ndarray:
    random, config, name = np.random.default_rng(length), model.config, model.main_input_name
    if name == "input_ids":
        return _ids(length, seed=length)
    if name == "pixel_values":
        sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        shape = (1, config.num_channels, *sides)
    elif name == "input_features" and hasattr(config, "max_source_positions"):
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
    else:
        raise ColdpressError(f"its input '{name}' is nothing that coldpress can try it with")
    return random.standard_normal(shape).astype(np.float32)


def main(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request with ``folder`` and ``trust_remote_code``."""
    return try_out(Path(request["folder"]), trust_remote_code=request["trust_remote_code"]).to_json()


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)
