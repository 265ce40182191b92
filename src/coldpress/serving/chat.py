"""A conversation with a pressed model, through onnxruntime-genai, and the adapters that take turns in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.serving.prompts import prompt_ids
from coldpress.target import physical_cores

#: where ``auto-opt`` puts a model that has adapters, within its output folder
_INNER = "model"


@dataclass(frozen=True)
class Settings:
    """How answers are made. ``temperature`` None or 0: always the likeliest token. ``threads`` 0: one for each core."""

    max_new_tokens: int = 256
    temperature: float | None = None
    threads: int = 0


@dataclass
class Conversation:
    """A model that remembers what was said; ``ask`` yields the answer piece by piece.

    ``adapters``: adapter files by name, of which ``adapter`` is the one that answers; None: the base alone.
    """

    folder: Path
    system: str | None = None
    settings: Settings = Settings()
    adapters: Mapping[str, Path] = field(default_factory=dict)
    adapter: str | None = None
    speed: str = ""

    def __post_init__(self) -> None:
        import onnxruntime_genai as og

        self.folder = model_folder(Path(self.folder))
        for file in self.adapters.values():
            _check_adapter(file, self.folder)
        self._model = og.Model(_config(self.folder, self.settings.threads))
        self._tokenizer = _tokenizer(self.folder, self._model)
        self._loaded = og.Adapters(self._model)
        for name, file in self.adapters.items():
            self._loaded.load(str(file), name)
        self._messages: list[dict[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        self._context = _context_length(self.folder)

    def use(self, adapter: str | None) -> None:
        """Let another adapter answer from now on, or the base alone. What was said stays."""
        if adapter is not None and adapter not in self.adapters:
            hint = (
                did_you_mean(adapter, self.adapters) if self.adapters else "name it at the start: --adapter NAME=PATH"
            )
            raise ColdpressError(f"there is no adapter '{adapter}' here", hint=hint)
        self.adapter = adapter

    def ask(self, question: str) -> Iterator[str]:
        """The answer, as it is generated. Raises ColdpressError when the conversation fills the model's context,
        or when the model's chat template refuses it."""
        self._messages.append({"role": "user", "content": question})
        try:
            ids = prompt_ids(self._tokenizer, self.folder, self._messages)
        except ValueError as error:
            del self._messages[-1]
            raise ColdpressError(f"{self.folder} cannot be asked that: {error}") from error
        if len(ids) >= self._context:
            raise ColdpressError(f"the conversation has {len(ids)} tokens, the model's context {self._context}")
        generator, stream, pieces = self._generator(ids), self._tokenizer.create_stream(), []
        started = time.perf_counter()
        generator.append_tokens(ids)
        first = None
        while not generator.is_done():
            generator.generate_next_token()
            first = first or time.perf_counter()
            pieces.append(stream.decode(generator.get_next_tokens()[0]))
            yield pieces[-1]
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        self.speed = _speed(len(pieces), started, first or started)

    def _generator(self, ids: Any) -> Any:
        import onnxruntime_genai as og

        options: dict[str, Any] = {
            "max_length": min(len(ids) + self.settings.max_new_tokens, self._context),
            "do_sample": False,
        }
        if self.settings.temperature:
            options.update(do_sample=True, temperature=self.settings.temperature)
        params = og.GeneratorParams(self._model)
        params.set_search_options(**options)
        generator = og.Generator(self._model, params)
        if self.adapter is not None:
            generator.set_active_adapter(self._loaded, self.adapter)
        return generator


def model_folder(folder: Path) -> Path:
    """The folder that onnxruntime-genai opens: this one, or the one in it. ColdpressError where there is none."""
    for place in (folder, folder / _INNER):
        if (place / "genai_config.json").exists():
            return place
    raise ColdpressError(
        f"'{folder}' is no model to chat with: it has no genai_config.json",
        hint="press one first: coldpress auto-opt --model_name_or_path ... --output_path ...",
    )


def _tokenizer(folder: Path, model: Any) -> Any:
    import onnxruntime_genai as og

    try:
        return og.Tokenizer(model)
    except RuntimeError as error:
        raise ColdpressError(f"onnxruntime-genai cannot read the tokenizer in {folder}: {error}") from error


def _check_adapter(file: Path, folder: Path) -> None:
    """Refuse a file that is no adapter, or none of this model: the runtime itself may end the process over it."""
    from coldpress.graphs.adapter_file import check_fits
    from coldpress.graphs.lora_metadata import read_slots
    from coldpress.models.onnx_folder import graph_file

    check_fits(file, read_slots(graph_file(folder)), folder)


def _config(folder: Path, threads: int) -> Any:
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    session = {"intra_op_num_threads": threads or physical_cores()}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return config


def _context_length(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["context_length"])


def _speed(count: int, started: float, first: float) -> str:
    decode = (count - 1) / max(time.perf_counter() - first, 1e-9)
    return f"[{count} tokens, first after {(first - started) * 1e3:.0f} ms, then {decode:.0f} tokens/s]"
