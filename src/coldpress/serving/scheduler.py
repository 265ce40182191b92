"""Answers that one engine makes side by side: they take turns token by token, and further ones wait in a queue.

Turns, not batches: onnxruntime-genai has no batch whose rows have adapters of their own, and rows of different lengths
do not answer in it as they do alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Literal

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.serving.engine import Engine, Grammar, Sampling, TokenStream


@dataclass(frozen=True)
class Question:
    """A prompt, and how it is to be answered."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Ended:
    """The last thing that is told of an answer: the model ended it, or there was no room for more of it."""

    reason: Literal["stop", "length"]


class Busy(Exception):
    """As many answers wait as may."""


class Closing(Exception):
    """No further answers are begun."""


#: a token, the end, or what went wrong; after these two nothing more is told
Event = int | Ended | ColdpressError
Tell = Callable[[Event], None]


class Answer:
    """One that was asked for; it is made until it ends or somebody closes it."""

    def __init__(self, question: Question, tell: Tell):
        self._question, self._tell = question, tell
        self._stream: TokenStream | None = None
        self._is_wanted = True

    def close(self) -> None:
        """Nobody waits for it any longer; from any thread."""
        self._is_wanted = False

    def refuse(self) -> None:
        """Tell that it will not be made."""
        self._tell(ColdpressError("the server is shutting down", exit_code=WORK_FAILED))

    def advance(self, engine: Engine) -> bool:
        """Make its next token; whether there may be more."""
        if not self._is_wanted:
            self._end()
            return False
        try:
            self._tell(next(self._begun(engine)))
        except StopIteration:
            ended = self._begun(engine).ended
            self._tell(Ended("stop" if ended == "stop" else "length"))
        except (ColdpressError, RuntimeError) as error:  # of the runtime's own kinds, there are no others
            self._tell(error if isinstance(error, ColdpressError) else _failed(error))
        else:
            return True
        self._end()
        return False

    def _begun(self, engine: Engine) -> TokenStream:
        if self._stream is None:
            asked = self._question
            self._stream = engine.generate(asked.prompt_ids, asked.sampling, asked.adapter, grammar=asked.grammar)
        return self._stream

    def _end(self) -> None:
        """Give its memory back."""
        if self._stream is not None:
            self._stream.close()


class Scheduler:
    """Makes up to ``parallel`` answers at a time, in a thread of its own; up to ``waiting`` more stand in line."""

    def __init__(self, engine: Engine, parallel: int = 4, waiting: int = 64):
        self._engine, self._parallel, self._most_waiting = engine, parallel, waiting
        self._line: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._changed = Condition()
        self.is_closing = False
        Thread(target=self._work, daemon=True, name=f"answers of {engine.folder.name}").start()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._line)

    def submit(self, questions: Sequence[Question], tells: Sequence[Tell]) -> list[Answer]:
        """Stand in line, all together or not at all; each event of an answer is told by the scheduler's thread.

        Raises Busy where the line is full, and Closing.
        """
        answers = [Answer(question, tell) for question, tell in zip(questions, tells, strict=True)]
        with self._changed:
            if self.is_closing:
                raise Closing
            free = self._parallel - len(self._running) + self._most_waiting - len(self._line)
            if len(answers) > free:
                raise Busy
            self._line.extend(answers)
            self._changed.notify()
        return answers

    def close(self) -> None:
        """Begin no further answers: those in line are refused, those that were begun are finished."""
        with self._changed:
            self.is_closing = True
            refused, self._line = list(self._line), deque()
            self._changed.notify()
        for answer in refused:
            answer.refuse()

    def _work(self) -> None:
        while self._admit():
            self._running = [answer for answer in self._running if answer.advance(self._engine)]

    def _admit(self) -> bool:
        """Begin what there is room for, waiting where there is nothing to do; False at the end."""
        with self._changed:
            while not self._line and not self._running:
                if self.is_closing:
                    return False
                self._changed.wait()
            while self._line and len(self._running) < self._parallel:
                self._running.append(self._line.popleft())
        return True


def _failed(error: RuntimeError) -> ColdpressError:
    return ColdpressError(f"onnxruntime-genai failed: {error}", exit_code=WORK_FAILED)
