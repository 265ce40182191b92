"""The logits of a Hugging Face causal language model in float32, with one module's weights in memory at a time.

The model is built with its parameters on ``meta``. Before a module runs, its own parameters are read from the
memory-mapped safetensors files and cast to float32; after it has run, they go back to ``meta``. All windows run as
one batch, so a call reads every weight once, and those of an expert that no token comes to not at all. Where
transformers computes a parameter from several stored tensors in another way than `experts` knows, the model is loaded
whole instead. Layers that are quantized in the folder have the values that their codes stand for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.networks.attach import attach
from coldpress.networks.checkpoint import EMBEDDING_CODES
from coldpress.networks.packed import PackedLinear, read_packed
from coldpress.networks.packed.folder import packing_tensors

if TYPE_CHECKING:
    import torch

_HEAD_ROWS = 8192


class Reference:
    """A Hugging Face folder as the truth that other models are compared with.

    ``streamed`` says whether the weights are read while the model runs (True) or were loaded whole.
    Code from the folder runs only with ``trust_remote_code``.
    """

    def __init__(self, folder: Path, trust_remote_code: bool = False):
        self.folder = Path(folder)
        self._trust = trust_remote_code
        self._shards = Shards(self.folder)
        self._model, stored = empty_model(self.folder, self._shards, trust_remote_code)
        self._adapter: Path | None = None
        self.streamed = stored is not None
        if stored is None:
            self._load_whole()
        else:
            self._stream(stored)

    def attach(self, adapter: Path) -> str:
        """Put a PEFT folder's adapter onto the model; says who did it: PEFT, or coldpress where PEFT cannot or is not there."""
        self._adapter = adapter
        return attach(self._model, adapter, self.folder)

    def logits(self, windows: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """For each window of token ids [tokens], its logits [tokens, vocab] in float32, in order.

        Shorter windows are padded on the right, which a causal model does not see. Only one window's logits
        exist at a time.
        """
        import torch

        with torch.inference_mode():
            output = self._run_body(_padded(windows))
        for index, window in enumerate(windows):
            with torch.inference_mode():
                scores = self._run_head(output, index, window)
            yield scores

    def hidden(self, window: np.ndarray, module_names: Sequence[str]) -> dict[str, np.ndarray]:
        """The outputs [tokens, out] of the named modules for one window; unknown names are left out."""
        import torch

        modules = dict(self._model.named_modules())
        outputs: dict[str, np.ndarray] = {}
        hooks = [
            modules[name].register_forward_hook(lambda _m, _a, out, name=name: outputs.update({name: _rows(out)}))
            for name in module_names
            if name in modules
        ]
        try:
            with torch.inference_mode():
                self._model(input_ids=_padded([window]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that the source itself puts after the prompt; reads all weights once a token."""
        import torch

        tokens: list[int] = []
        ids, cache = torch.tensor([list(prompt)]), None
        with torch.inference_mode():
            while len(tokens) < count:
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                ids = output.logits[:, -1:].argmax(-1)
                tokens.append(int(ids))
        return tokens

    def _run_body(self, ids: torch.Tensor) -> Any:
        """The network without its head; None where the model does not set the two apart."""
        body = self._body()
        try:
            return None if body is None else body(input_ids=ids, use_cache=False)
        except (RuntimeError, NotImplementedError) as error:
            if not self.streamed or "meta" not in str(error):
                raise
        self._load_whole()  # this model reads a parameter outside the module that owns it
        return self._run_body(ids)

    def _run_head(self, output: Any, index: int, window: np.ndarray) -> np.ndarray:
        """Logits of one window; the model's own forward runs, so scaling and capping of logits are its own."""
        ids, body = _padded([window]), self._body()
        if output is None or body is None:
            return _rows(self._model(input_ids=ids, use_cache=False).logits)
        states = output.last_hidden_state[index : index + 1, : len(window)]
        body.forward = lambda *args, **kwargs: type(output)(last_hidden_state=states)
        try:
            return _rows(self._model(input_ids=ids, use_cache=False).logits)
        finally:
            del body.forward

    def _body(self) -> Any:
        body = getattr(self._model, self._model.base_model_prefix or " ", None)
        return None if body is self._model else body

    def _load_whole(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.streamed = False
        if self._shards.has_packed:
            config = config_of(self.folder, self._trust)
            values = {name: self._shards.tensor(name).float() for name in self._shards.names()}
            model = type(self._model).from_pretrained(None, config=config, state_dict=values, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, trust_remote_code=self._trust, local_files_only=True
            )
        self._model = model.eval()
        if self._adapter is not None:
            self.attach(self._adapter)

    def _stream(self, stored: Mapping[str, str]) -> None:
        head = self._model.get_output_embeddings()
        tied = tied_names(self._model)
        for path, module in self._model.named_modules():
            keys = {}
            for local in module._parameters:
                name = f"{path}.{local}" if path else local
                if module._parameters[local] is not None:
                    keys[local] = stored.get(name) or stored[tied[name]]
            if keys and module is head and _is_plain_linear(module):
                _apply_in_slices(module, self._shards, keys)
            elif keys:
                load_while_running(module, self._shards, keys)
        for name, buffer in self._model.named_buffers():
            if name in stored:
                buffer.copy_(self._shards.tensor(stored[name]))


class Shards:
    """The tensors of a folder's safetensors files by name, memory-mapped; those of quantized layers as their values."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = sorted(file.name for file in folder.glob("*.safetensors") if file.name != EMBEDDING_CODES)
        if not names:
            raise ColdpressError(
                f"no safetensors files in {folder}", hint="save the model with save_pretrained, then try again"
            )
        self._files: list[Any] = [safe_open(folder / name, framework="pt") for name in names]
        linears = read_packed(folder)
        hidden = packing_tensors(folder, linears)
        self._packed = {f"{module}.weight": linear for module, linear in linears.items()}
        self._home: dict[str, Any] = {
            key: file
            for file in self._files
            for key in file.keys()  # noqa: SIM118
            if key not in hidden
        }

    @property
    def has_packed(self) -> bool:
        return bool(self._packed)

    def names(self) -> list[str]:
        return [*self._home, *self._packed]

    def shape(self, name: str) -> tuple[int, ...]:
        if linear := self._packed.get(name):
            return linear.rows, linear.columns
        return tuple(self._home[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The type a tensor is stored in, as torch calls it."""
        return "float32" if name in self._packed else str(self.tensor(name).dtype).removeprefix("torch.")

    def tensor(self, name: str) -> torch.Tensor:
        """The stored tensor, as a view of the mapped file; a packed one is computed."""
        if linear := self._packed.get(name):
            return _values(linear, 0, linear.rows)
        tensor: torch.Tensor = self._home[name].get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a tensor in float32."""
        if linear := self._packed.get(name):
            return _values(linear, start, min(stop, linear.rows))
        return self.tensor(name)[start:stop].float()


def _values(linear: PackedLinear, start: int, stop: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(linear.dequantized(start, stop))


def config_of(folder: Path, trust_remote_code: bool) -> Any:
    """The configuration of the folder's model, as if no layer was quantized."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    for part in parts:
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def empty_model(folder: Path, shards: Shards, trust_remote_code: bool) -> tuple[Any, dict[str, str] | None]:
    """The folder's model with its parameters on ``meta``; parameter -> stored tensor, see `_stored_names`."""
    import torch
    from transformers import AutoModelForCausalLM

    from coldpress.networks.experts import part_experts

    try:
        config = config_of(folder, trust_remote_code)
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise ColdpressError(f"transformers cannot build a causal language model from {folder}: {error}") from error
    filled = part_experts(model, set(shards.names()))
    return model.eval(), _stored_names(model, shards, filled)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built inside get parameters without memory; buffers, such as rotary frequencies, are real."""
    from torch import nn

    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _stored_names(model: Any, shards: Shards, filled: Mapping[str, str]) -> dict[str, str] | None:
    """Name in the model -> name in the files; None unless every parameter is one stored tensor, unchanged.

    ``filled``: stored name -> parameter where that is known already.
    """
    rename = _renaming(model)
    names: dict[str, str] = {}
    for key in shards.names():
        name, is_converted = (filled[key], False) if key in filled else rename(key)
        if is_converted:
            return None
        names[name] = key
    tied = tied_names(model)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        stored = names.get(path) or names.get(tied.get(path, ""))
        if stored is None or shards.shape(stored) != tuple(parameter.shape):
            return None
    return names


def _renaming(model: Any) -> Any:
    """How transformers maps a stored name: name -> (name in the model, whether the values change too)."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 has no such table: a renamed parameter is missing, the model is loaded whole
        return lambda key: (key, False)
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    state = model.state_dict()

    def rename(key: str) -> tuple[str, bool]:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        return name, pattern is not None

    return rename


def tied_names(model: Any) -> dict[str, str]:
    """Parameter -> the parameter it shares its tensor with, as the model itself says."""
    tied = getattr(model, "all_tied_weights_keys", None)
    if isinstance(tied, Mapping):
        return dict(tied)
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def load_while_running(module: Any, shards: Shards, keys: Mapping[str, str]) -> None:
    """Give a module real parameters for as long as its forward runs."""
    from torch import nn

    empty = dict(module._parameters)

    def load(module: Any, args: tuple[Any, ...]) -> None:
        for local, key in keys.items():
            tensor = shards.tensor(key)
            looks_up = isinstance(module, nn.Embedding) and bool(args)
            values = _looked_up_rows(tensor, args[0]) if looks_up else tensor.float()
            module._parameters[local] = nn.Parameter(values, requires_grad=False)

    def drop(module: Any, _args: Any, _output: Any) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop, always_call=True)


def _looked_up_rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A float32 table of which only the rows that ``ids`` ask for are filled; the others take no memory."""
    import torch

    if table.dtype == torch.float32:
        return table
    rows = ids.unique()
    filled = torch.empty(table.shape, dtype=torch.float32)
    filled[rows] = table[rows].float()
    return filled


def _is_plain_linear(module: Any) -> bool:
    from torch import nn

    return type(module) is nn.Linear


def _apply_in_slices(head: Any, shards: Shards, keys: Mapping[str, str]) -> None:
    """Let the head run from the mapped file, slice by slice: no float32 copy of the vocabulary's matrix exists."""
    import torch

    def forward(states: torch.Tensor) -> torch.Tensor:
        count = shards.shape(keys["weight"])[0]
        bias = shards.tensor(keys["bias"]).float() if "bias" in keys else None
        logits = torch.empty(*states.shape[:-1], count, dtype=torch.float32)
        for start in range(0, count, _HEAD_ROWS):
            part = slice(start, start + _HEAD_ROWS)
            weight = shards.rows(keys["weight"], start, start + _HEAD_ROWS)
            logits[..., part] = torch.nn.functional.linear(states, weight, None if bias is None else bias[part])
        return logits

    head.forward = forward


def _padded(windows: Sequence[np.ndarray]) -> torch.Tensor:
    """Token ids [windows, longest], zeros on the right."""
    import torch

    ids = torch.zeros(len(windows), max(len(window) for window in windows), dtype=torch.long)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window)] = torch.as_tensor(np.asarray(window, dtype=np.int64))
    return ids


def _rows(output: Any) -> np.ndarray:
    """The first tensor of a module's output, without the batch of one, as float32 [tokens, out]."""
    tensor = output[0] if isinstance(output, tuple) else output
    rows: np.ndarray = tensor.reshape(-1, tensor.shape[-1]).float().numpy()
    return rows
