"""The tokenizer of a model folder as transformers has it: pairs of texts, words, truncation, padding."""

from __future__ import annotations

from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.tokenizers.tokenizer import pretrained_tokenizer

__all__ = ["longest_input", "pretrained_tokenizer"]


def longest_input(tokenizer: Any, asked: int | None) -> int | None:
    """The tokens to cut a text to: what was asked for, at most what the tokenizer says that the model takes."""
    most = tokenizer.model_max_length
    known = most if isinstance(most, int) and most < 1 << 24 else None  # transformers says "no limit" as 1e30
    if asked is not None and known is not None and asked > known:
        raise ColdpressError(f"max_seq_len is {asked}; the model takes {known} tokens", hint=f"use {known} or less")
    return asked or known
