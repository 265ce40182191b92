"""A conversation with a pressed model, through onnxruntime-genai."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.target import physical_cores


class Conversation:
    """A model that remembers what was said; ``ask`` yields the answer piece by piece."""

    def __init__(
        self,
        folder: str | Path,
        *,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        threads: int = 0,
    ):
        import onnxruntime_genai as og

        config = _config(Path(folder), threads)
        self._model = og.Model(config)
        self._tokenizer = og.Tokenizer(self._model)
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._context = _context_length(Path(folder))
        self.speed = ""

    def ask(self, question: str) -> Iterator[str]:
        """The answer, as it is generated. Raises ColdpressError when the conversation fills the model's context."""
        self._messages.append({"role": "user", "content": question})
        ids = self._tokenizer.encode(self._prompt())
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

    def _prompt(self) -> str:
        """The conversation in the model's chat template; the bare words if it has none."""
        try:
            prompt: str = self._tokenizer.apply_chat_template(json.dumps(self._messages), add_generation_prompt=True)
            return prompt
        except RuntimeError:
            return "\n".join(message["content"] for message in self._messages)

    def _generator(self, ids: Any) -> Any:
        import onnxruntime_genai as og

        options: dict[str, Any] = {
            "max_length": min(len(ids) + self._max_new_tokens, self._context),
            "do_sample": False,
        }
        if self._temperature:
            options.update(do_sample=True, temperature=self._temperature)
        params = og.GeneratorParams(self._model)
        params.set_search_options(**options)
        return og.Generator(self._model, params)


def _config(folder: Path, threads: int) -> Any:
    import onnxruntime_genai as og

    if not (folder / "genai_config.json").exists():
        raise ColdpressError(
            f"'{folder}' is no model to chat with: it has no genai_config.json",
            hint="press one first: coldpress auto-opt --model_name_or_path ... --output_path ...",
        )
    config = og.Config(str(folder))
    session = {"intra_op_num_threads": threads or physical_cores()}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return config


def _context_length(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["context_length"])


def _speed(count: int, started: float, first: float) -> str:
    decode = (count - 1) / max(time.perf_counter() - first, 1e-9)
    return f"[{count} tokens, first after {(first - started) * 1e3:.0f} ms, then {decode:.0f} tokens/s]"
