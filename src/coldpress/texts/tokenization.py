"""The tokenizer of a model folder as transformers has it: pairs of texts, words, truncation, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError

_HINT = (
    "save it there with AutoTokenizer.from_pretrained(...).save_pretrained(folder), or name its folder as 'tokenizer'"
)


def pretrained_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder; no code from the folder is run."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(f"no tokenizer can be loaded from {folder}: {reason}", hint=_HINT) from error
    return tokenizer


def longest_input(tokenizer: Any, asked: int | None) -> int | None:
    """The tokens to cut a text to: what was asked for, at most what the tokenizer says that the model takes."""
    most = tokenizer.model_max_length
    known = most if isinstance(most, int) and most < 1 << 24 else None  # transformers says "no limit" as 1e30
    if asked is not None and known is not None and asked > known:
        raise ColdpressError(f"max_seq_len is {asked}; the model takes {known} tokens", hint=f"use {known} or less")
    return asked or known
