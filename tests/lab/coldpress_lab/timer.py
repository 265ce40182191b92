"""What happens in the process that measures, where times are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coldpress_lab.worker import Worker


@dataclass(frozen=True)
class Timer(Worker):
    """The same, called a measurement of time."""

    is_timed: ClassVar[bool] = True
