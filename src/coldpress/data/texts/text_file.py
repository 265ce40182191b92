"""Text files, plain or packed with gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from coldpress.errors import ColdpressError


@contextmanager
def open_text(file: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file in UTF-8 (a byte order mark is left out), unpacked when its name ends in ``.gz``.

    Raises ColdpressError when it cannot be opened, and for what goes wrong while it is read.
    """
    try:
        if file.suffix.lower() == ".gz":
            with gzip.open(file, "rt", encoding="utf-8-sig", newline=newline) as packed:
                yield cast("TextIO", packed)
        else:
            with file.open(encoding="utf-8-sig", newline=newline) as plain:
                yield plain
    except UnicodeDecodeError as error:
        raise ColdpressError(f"{file} is not a text file in UTF-8 ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ColdpressError(f"cannot read {file}: {reason}") from error
