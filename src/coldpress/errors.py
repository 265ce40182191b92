"""The one exception that users see plain: what is wrong, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

WORK_FAILED = 1
REQUEST_WRONG = 2
WORSE_THAN_TOLERANCE = 3


class ColdpressError(Exception):
    """A failure with a message for the user and, where there is one, the next action.

    ``message`` names the rule, the place and the value seen. ``hint`` is one sentence with the next
    action. ``exit_code`` is what the command line ends with: 2 when the request was wrong (the default),
    1 when the work failed, 3 when a model was written that is worse than its tolerance.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = REQUEST_WRONG):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.message, self.hint, self.exit_code)


class NotAtHand(ColdpressError):
    """Something that a request names is not on this machine, or no hub answers for it; a dry run goes on without it."""


def _rebuild(message: str, hint: str | None, exit_code: int) -> ColdpressError:
    return ColdpressError(message, hint=hint, exit_code=exit_code)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the name of a place in front of the message of a ColdpressError that is raised inside."""
    try:
        yield
    except ColdpressError as error:
        raise ColdpressError(f"{place}: {error.message}", hint=error.hint, exit_code=error.exit_code) from error


@contextmanager
def raised_as(told: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Raise what ``told`` makes of an error of somebody else's code; a ColdpressError stays as it is.

    For code whose errors have no common base: onnxruntime, tokenizers, protobuf, the converters of onnxscript, that of
    models, and scripts of the user's.
    """
    try:
        yield
    except ColdpressError:
        raise
    except (Exception, SystemExit) as error:  # such code raises anything, and may mean to end the program
        raise told(error) from error


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint that names the closest of the ``known`` names, or all of them, if there are any, when none is close."""
    names = sorted(known, key=lambda name: (len(name) if name.isdigit() else 0, name))
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.55)
    if not names:
        return "there is none to name"
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
