"""Text that no pass has seen, cut into windows of tokens for evaluation.

The project's own texts (prose, dialogue, code) stand in ``texts/heldout``; a user's files take their place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.tokenizers.tokenizer import fast_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OWN = ("prose.txt", "dialogue.txt", "code.txt")


def texts(files: Sequence[Path | str] = ()) -> list[str]:
    """One text for each file: ``.jsonl`` files with a ``text`` field in each line, all others plain text.

    Without files, the project's own held-out texts.
    """
    if not files:
        folder = resources.files("coldpress.data.texts").joinpath("heldout")
        return [folder.joinpath(name).read_text(encoding="utf-8") for name in _OWN]
    return [_read(Path(file)) for file in files]


def names(files: Sequence[Path | str] = ()) -> list[str]:
    """What the texts are called: their files' names without endings."""
    return [Path(file).stem for file in files or _OWN]


def windows(
    tokenizer_folder: Path, tokens_per_window: int = 256, max_windows: int = 8, files: Sequence[Path | str] = ()
) -> list[np.ndarray]:
    """Windows of token ids (int64 ``[tokens]``), taken from the texts in turn, so that each kind is there."""
    return [window for _, window in named_windows(tokenizer_folder, tokens_per_window, max_windows, files)]


def named_windows(
    tokenizer_folder: Path, tokens_per_window: int = 256, max_windows: int = 8, files: Sequence[Path | str] = ()
) -> list[tuple[str, np.ndarray]]:
    """`windows`, each with the name of its text.

    A window starts with BOS if the tokenizer adds one; it counts as one of the window's tokens. Only a text
    shorter than a window gives a shorter one.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    start = start_tokens(tokenizer, tokenizer_folder)
    length = tokens_per_window - len(start)
    if length < 2:
        raise ColdpressError(f"tokens_per_window is {tokens_per_window}; at least {len(start) + 2} are needed")
    columns = [
        [(name, piece) for piece in _pieces(tokenizer.encode(text, add_special_tokens=False).ids, length)]
        for name, text in zip(names(files), texts(files), strict=True)
    ]
    in_turn = [found for row in zip_longest(*columns) for found in row if found is not None]
    if not in_turn:
        raise ColdpressError("the evaluation text is too short: fewer than two tokens")
    return [(name, np.array([*start, *piece], dtype=np.int64)) for name, piece in in_turn[:max_windows]]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a model folder, which neither cuts nor fills up what it is given."""
    tokenizer = fast_tokenizer(Path(folder))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def start_tokens(tokenizer: Tokenizer, folder: Path) -> list[int]:
    """The ids that the tokenizer puts before every text: BOS, or nothing.

    Either tokenizer.json says so (a post-processor) or tokenizer_config.json does (``add_bos_token``).
    """
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    for position in range(len(whole) - len(plain) + 1):
        if whole[position : position + len(plain)] == plain:
            break
    else:
        position = 0
    if position:
        return whole[:position]
    file = Path(folder) / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    token = config.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(token) if token and config.get("add_bos_token") else None
    return [] if found is None else [found]


def _pieces(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    if len(ids) < length:
        return [ids] if len(ids) >= 2 else []
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ColdpressError(f"cannot read {file}: {error}") from error
    return "\n\n".join(_rows(file, text.split("\n"))) if file.suffix == ".jsonl" else text


def _rows(file: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ColdpressError(f"{file}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ColdpressError(
                f'{file}, line {number}: no field "text" with a string', hint='each line is like {"text": "..."}'
            )
        yield row["text"]
