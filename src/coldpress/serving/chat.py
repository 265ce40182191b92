"""A conversation with a pressed model, and the adapters that take turns in it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import ColdpressError
from coldpress.serving.engine import Engine, Sampling, TokenStream, own_sampling
from coldpress.serving.prompts import prompt_ids

#: where ``auto-opt`` puts a model that has adapters, within its output folder
_INNER = "model"
_ROOM = 4  # of the context, an answer is kept room for in one part of so many, where it may be that long


@dataclass(frozen=True)
class Turn:
    """The last answer: its tokens and times, and how many older turns had to be forgotten to make room for it."""

    stream: TokenStream
    forgotten: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether the model would have gone on."""
        return self.stream.ended == "length"

    @property
    def speed(self) -> str:
        """In words: tokens, time to the first, tokens a second from there."""
        decode, count = self.stream.decode_s, len(self.stream.tokens)
        pace = f", then {len(decode) / sum(decode):.0f} tokens/s" if decode else ""
        return f"[{count} tokens, first after {self.stream.first_token_s * 1e3:.0f} ms{pace}]"


class Conversation:
    """A model that remembers what was said; ``ask`` yields the answer piece by piece, ``last`` tells of it.

    ``adapter`` is the one of the engine's that answers; None: the base alone. Where the context is full, the oldest
    turns are forgotten.
    """

    def __init__(
        self, engine: Engine, system: str | None = None, sampling: Sampling | None = None, adapter: str | None = None
    ):
        self.engine = engine
        self.sampling = sampling or own_sampling(engine.folder)
        self.system = system
        self.last: Turn | None = None
        self.adapter: str | None = None
        self.use(adapter)
        self._tokenizer = engine.tokenizer()
        self._said: list[dict[str, str]] = []

    def use(self, adapter: str | None) -> None:
        """Let another adapter answer from now on, or the base alone. What was said stays."""
        self.engine.check_adapter(adapter)
        self.adapter = adapter

    def reset(self) -> None:
        """Forget what was said; instructions stay."""
        self._said.clear()

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer, as it is generated; what was made of it counts as said, also when the caller stops asking for
        more.

        Raises ColdpressError when the question alone fills the model's context, or when the model's chat template
        refuses it.
        """
        said, ids = self._fitted([*self._said, {"role": "user", "content": question}])
        stream = self.engine.generate(ids, self.sampling, self.adapter)
        self.last = Turn(stream, (len(self._said) + 1 - len(said)) // 2)
        pieces, decoder = [], self._tokenizer.create_stream()
        try:
            for token in stream:
                pieces.append(decoder.decode(token))
                yield pieces[-1]
        finally:
            stream.close()
            self._said = [*said, {"role": "assistant", "content": "".join(pieces)}]

    def _fitted(self, said: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """As much of what was said, from its end, as leaves room for an answer; and its tokens."""
        context = self.engine.context_length
        most = context - min(self.sampling.max_new_tokens, context // _ROOM)
        while True:
            ids = self._ids(said)
            if len(ids) <= most:
                return said, ids
            if len(said) == 1:
                break
            said = said[2:]
        if len(ids) < context:
            return said, ids
        raise ColdpressError(
            f"the question has {len(ids)} tokens with all that goes before it, the model's context {context}"
        )

    def _ids(self, said: list[dict[str, str]]) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            return prompt_ids(self._tokenizer, self.engine.folder, [*system, *said])
        except ValueError as error:
            raise ColdpressError(f"{self.engine.folder} cannot be asked that: {error}") from error


def model_folder(folder: Path) -> Path:
    """The folder that onnxruntime-genai opens: this one, or the one in it. ColdpressError where there is none."""
    for place in (folder, folder / _INNER):
        if (place / "genai_config.json").exists():
            return place
    raise ColdpressError(
        f"'{folder}' is no model to chat with: it has no genai_config.json",
        hint="press one first: coldpress auto-opt --model_name_or_path ... --output_path ...",
    )
