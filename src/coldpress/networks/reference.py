"""The logits of a Hugging Face causal language model in float32, with one module's weights in memory at a time.

The model is built with its parameters on ``meta``. Before a module runs, its own parameters are read from the
memory-mapped safetensors files and cast to float32; after it has run, they go back to ``meta``. All windows run as
one batch, so a call reads every weight once, and those of an expert that no token comes to not at all. Where
transformers computes a parameter from several stored tensors in another way than `experts` knows, the model is loaded
whole instead. Layers that are quantized in the folder have the values that their codes stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.networks.attach import attach
from coldpress.networks.empty import COMPLETE, config_of, empty_like, empty_model, tied_names
from coldpress.networks.loaded import Loaded
from coldpress.networks.on_demand import Tensors, apply_in_slices, is_plain_linear, load_while_running
from coldpress.networks.shards import Shards

if TYPE_CHECKING:
    import torch


class Reference:
    """A Hugging Face folder as the truth that other models are compared with; see `referee` for which one to take.

    ``streamed`` says whether the weights are read while the model runs (True) or were loaded whole. Code from the
    folder runs only with ``trust_remote_code``. ``cut`` changes the configuration, to one of fewer layers.
    """

    def __init__(
        self, folder: Path, trust_remote_code: bool = False, cut: Callable[[Any], Any] = lambda config: config
    ):
        self.folder = Path(folder)
        self._trust, self._cut = trust_remote_code, cut
        self._adapter: Path | None = None
        self._loaded: Loaded | None = None
        self._keys: dict[str, str] = {}
        self._shards = Shards(self.folder)
        self._tensors: Tensors = self._shards
        config = cut(config_of(self.folder, trust_remote_code))
        self._model, stored = empty_model(self.folder, self._shards, trust_remote_code, config)
        self.streamed = stored is not None
        if stored is None:
            self._load_whole()
        else:
            self._stream(stored)

    @classmethod
    def of(cls, folder: Path, found: Loaded, trust_remote_code: bool = False) -> Reference:
        """What transformers loaded, in whatever type, run in float32: each module's values are cast while it runs."""
        self = cls.__new__(cls)
        self.folder, self._trust, self._adapter, self.streamed = Path(folder), trust_remote_code, None, False
        self._loaded, self._tensors, self._keys, self._model = found, found, {}, found.network
        if not found.is_plain_float32:
            self._run_beside(found)
        return self

    def another(self) -> Reference:
        """One more of the same source, read alike, with a network of its own that an adapter may change."""
        if self._loaded is None:
            return Reference(self.folder, self._trust, self._cut)
        other = Reference.of(self.folder, self._loaded, self._trust)
        other._run_beside(self._loaded)
        return other

    def _run_beside(self, found: Loaded) -> None:
        """Run a network without memory that takes its values from what transformers loaded."""
        self._model = empty_like(found.network)
        self._stream({name: name for name in found.values})

    @property
    def network(self) -> Any:
        """The transformers model that runs."""
        return self._model

    def values(self) -> dict[str, Callable[[], torch.Tensor]]:
        """How to read each parameter of a streamed model from the files, by its name."""
        return {name: partial(self._shards.tensor, stored) for name, stored in self._keys.items()}

    def attach(self, adapter: Path) -> str:
        """Put a PEFT folder's adapter onto the model; says who did it: PEFT, or coldpress where PEFT cannot or is not
        there."""
        self._adapter = adapter
        return attach(self._model, adapter, self.folder)

    def logits(self, windows: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """For each window of token ids [tokens], its logits [tokens, vocab] in float32, in order.

        Shorter windows are padded on the right, which a causal model does not see. Only one window's logits
        exist at a time.
        """
        import torch

        with torch.inference_mode(), self._failing_plainly():
            output = self._run_body(_padded(windows))
        for index, window in enumerate(windows):
            with torch.inference_mode(), self._failing_plainly():
                scores = self._run_head(output, index, window)
            yield scores

    @contextmanager
    def _failing_plainly(self) -> Iterator[None]:
        """What transformers raises for a configuration that is contradictory, or not that of the weights, as
        ColdpressError."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise ColdpressError(
                f"transformers cannot run the model in {self.folder}: {type(error).__name__}: {error}", hint=COMPLETE
            ) from error

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
            if not self._keys or "meta" not in str(error):
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
        """Have all parameters in memory, in float32."""
        import torch
        from transformers import AutoModelForCausalLM

        if self._loaded is not None:
            model = type(self._model)(self._model.config)
            model.load_state_dict({name: value.float() for name, value in self._loaded.values.items()}, strict=False)
        elif self._shards.has_packed:
            config = self._cut(config_of(self.folder, self._trust))
            values = {name: self._shards.tensor(name).float() for name in self._shards.names()}
            model = type(self._model).from_pretrained(None, config=config, state_dict=values, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                config=self._cut(config_of(self.folder, self._trust)),
                dtype=torch.float32,
                trust_remote_code=self._trust,
                local_files_only=True,
            )
        self.streamed, self._keys = False, {}
        self._model = model.eval()
        self._put_adapter()

    def _put_adapter(self) -> None:
        """Put the adapter onto a model that was loaded whole."""
        if self._adapter is not None:
            self.attach(self._adapter)

    def _modules(self) -> Iterator[tuple[str, Any, Any]]:
        """The modules whose parameters are streamed: name, module, and the one around it while which runs it has
        them."""
        for path, module in self._model.named_modules():
            yield path, module, None

    def _stream(self, stored: Mapping[str, str]) -> None:
        """Let each module take its parameters from the tensors while it runs; ``stored``: parameter -> tensor."""
        head = self._model.get_output_embeddings()
        tied, buffers = tied_names(self._model), dict(self._model.named_buffers())
        for path, module, around in self._modules():
            keys = {}
            for local, parameter in module._parameters.items():
                name = f"{path}.{local}" if path else local
                if parameter is not None and parameter.device.type == "meta":
                    keys[local] = self._keys[name] = stored.get(name) or stored[tied[name]]
            if keys and module is head and around is None and is_plain_linear(module):
                apply_in_slices(module, self._tensors, keys)
            elif keys:
                load_while_running(module, self._tensors, keys, around)
        for name, buffer in buffers.items():
            if name in stored:
                buffer.copy_(self._tensors.tensor(stored[name]))


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
