"""Text to text: an encoder reads a text, a decoder writes another, such as a translation or a summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldpress.measuring.agreement import Spoken


class Text2textGeneration(Spoken):
    """Compared on held-out sentences, token by token of what the source writes for them by greedy search."""

    title = "text-to-text generation"
    pipeline = "text2text-generation"
    names = ("translation", "summarization")
    loader = "AutoModelForSeq2SeqLM"
    classes = ("ForConditionalGeneration", "MTModel")
    seen_on = "a tiny T5 and BART"

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Not for decoders alone, whose classes may be named alike."""
        return bool(settings.get("is_encoder_decoder"))
