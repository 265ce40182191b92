"""Putting an adapter onto its base: every layer it names is found in the checkpoint, with the right shape, or it is
refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span
from coldpress.models.low_rank import LowRank, stacked
from coldpress.models.packed.spans import plain_tensors
from coldpress.models.peft import Adapter, refusal

#: layers that some checkpoints have apart and others one above the other, in the order of their rows
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_FUSED_OF = {part: fused for fused, parts in FUSED.items() for part in parts}
#: how the names of token embeddings end, which a head may be tied to
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_NAMED_IN_MESSAGES = 3
_ROWS = 4096


@dataclass
class Base:
    """The linear layers of a checkpoint: ``shapes`` ``(out, in)`` by module name, those of a quantized folder too."""

    folder: Path
    shapes: Mapping[str, tuple[int, int]]
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Base:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = {name: span.shape for name, span in plain_tensors(folder).items() if name.endswith(".weight")}
        shapes = {name.removesuffix(".weight"): (s[0], s[1]) for name, s in found.items() if len(s) == 2}
        if config.get("tie_word_embeddings") and not any(name.endswith("lm_head") for name in shapes):
            tables = [shape for name, shape in shapes.items() if name.endswith(EMBEDDINGS)]
            if tables:
                shapes["lm_head"] = tables[0]
        return cls(folder, shapes, {**config, **(config.get("text_config") or {})})

    def find(self, module: str) -> str | None:
        """The checkpoint's name for a module: the same, or the only one that differs by what stands in front of it."""
        if module in self.shapes:
            return module
        alike = [name for name in self.shapes if name.endswith(f".{module}") or module.endswith(f".{name}")]
        return alike[0] if len(alike) == 1 else None

    def parts_of(self, fused: str) -> list[tuple[str, int]]:
        """The layers that lie one above the other in a fused one, with their rows; empty where that is not known."""
        parent, leaf = _split(fused)
        if leaf not in FUSED:
            return []
        names = [f"{parent}{part}" for part in FUSED[leaf]]
        if all(name in self.shapes for name in names):
            return [(name, self.shapes[name][0]) for name in names]
        rows = self._rows(leaf, self.shapes.get(fused, (0, 0))[0])
        return list(zip(names, rows, strict=True)) if rows else []

    def _rows(self, leaf: str, whole: int) -> list[int]:
        if leaf == "gate_up_proj":
            return [whole // 2, whole // 2]
        heads = int(self.config.get("num_attention_heads") or 1)
        width = int(self.config.get("head_dim") or self.config.get("hidden_size", 0) // heads)
        kept = int(self.config.get("num_key_value_heads") or heads)
        rows = [heads * width, kept * width, kept * width]
        return rows if sum(rows) == whole else []


def on_base(adapter: Adapter, base: Base) -> dict[str, LowRank]:
    """What an adapter adds, by the checkpoint's module names.

    An adapter for separate layers fits a checkpoint that has them fused, and the reverse, exactly. Raises
    ColdpressError that lists the modules that the base does not have, or the first one of another shape.
    """
    layers: dict[str, LowRank] = {}
    unknown: list[str] = []
    within: dict[str, dict[str, LowRank]] = {}
    for module, layer in adapter.layers.items():
        parent, leaf = _split(module)
        if name := base.find(module):
            layers[name] = layer
        elif parts := base.parts_of(module):
            layers.update(_apart(layer, parts))
        elif leaf in _FUSED_OF and (fused := base.find(f"{parent}{_FUSED_OF[leaf]}")):
            within.setdefault(fused, {})[leaf] = layer
        else:
            unknown.append(module)
    if unknown:
        raise _unknown(adapter, base, unknown)
    layers.update({fused: _together(adapter, base, fused, found) for fused, found in within.items()})
    for name, layer in layers.items():
        _check_shape(adapter, base, name, layer)
    _check_same_base(adapter, base)
    return layers


def _check_same_base(adapter: Adapter, base: Base) -> None:
    """Refuse an adapter that brings another embedding or head than the base has, or tokens that its tokenizer does not
    know."""
    stored = plain_tensors(base.folder)
    for module, span in adapter.of_base.items():
        names = [f"{name}.weight" for name in (base.find(module), module) if name is not None]
        own = next((stored[name] for name in names if name in stored), None)
        own = own or next((s for n, s in stored.items() if n.removesuffix(".weight").endswith(EMBEDDINGS)), None)
        if own is not None and (own.shape != span.shape or not _is_close(own, span)):
            raise refusal(adapter.folder, f"has a '{module}' of its own that is not that of {base.folder}")
    if more := more_tokens(adapter.folder, base.folder):
        named = ", ".join(repr(token) for token in sorted(more)[:_NAMED_IN_MESSAGES])
        raise refusal(adapter.folder, f"has a tokenizer with tokens that {base.folder} does not have: {named}")


def _is_close(first: Span, second: Span) -> bool:
    """Whether two matrices are the same row by row, as far as types of different width can tell."""
    for start in range(0, first.shape[0], _ROWS):
        one, other = (span.rows(start, min(start + _ROWS, first.shape[0])) for span in (first, second))
        if (np.linalg.norm(one - other, axis=1) > 0.01 * np.linalg.norm(one, axis=1)).any():
            return False
    return True


def more_tokens(adapter: Path, base: Path) -> dict[str, int]:
    """Tokens, with their ids, that the tokenizer beside an adapter has and that of its base has not; none where one is
    missing."""
    theirs = _tokens(adapter)
    ours = _tokens(base) if theirs else {}
    return {token: number for token, number in theirs.items() if token not in ours} if ours else {}


def _tokens(folder: Path) -> dict[str, int]:
    """All tokens of a folder's tokenizer; none where it has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    read = json.loads(file.read_text(encoding="utf-8-sig"))
    known = read["model"].get("vocab") or {}
    if not isinstance(known, dict):
        known = {token: number for number, (token, _) in enumerate(known)}
    return {**known, **{token["content"]: token["id"] for token in read.get("added_tokens") or ()}}


def _split(module: str) -> tuple[str, str]:
    """What stands in front of the last part of a name, with its dot, and that part."""
    parent, dot, leaf = module.rpartition(".")
    return parent + dot, leaf


def _apart(layer: LowRank, parts: list[tuple[str, int]]) -> Iterator[tuple[str, LowRank]]:
    start = 0
    for name, rows in parts:
        yield name, layer.rows(start, start + rows)
        start += rows


def _together(adapter: Adapter, base: Base, fused: str, found: Mapping[str, LowRank]) -> LowRank:
    rows = {_split(name)[1]: count for name, count in base.parts_of(fused)}
    wrong = next((leaf for leaf, layer in found.items() if rows.get(leaf) != layer.outputs), None)
    if wrong is not None:
        raise ColdpressError(
            f"adapter '{adapter.folder}' gives '{wrong}' {found[wrong].outputs} outputs, '{fused}' of {base.folder} has"
            f" {rows.get(wrong, 'no known number')} for it",
            hint="was it trained on another model?",
        )
    return stacked([found.get(leaf, count) for leaf, count in rows.items()])


def _check_shape(adapter: Adapter, base: Base, name: str, layer: LowRank) -> None:
    shape = base.shapes[name]
    wanted = (shape[1], shape[0]) if adapter.config.get("fan_in_fan_out") else shape
    if (layer.outputs, layer.inputs) != wanted:
        raise ColdpressError(
            f"adapter '{adapter.folder}' has '{name}' for a weight [{layer.outputs}, {layer.inputs}], in {base.folder}"
            f" it is {list(wanted)}",
            hint="was it trained on another model?",
        )


def _unknown(adapter: Adapter, base: Base, unknown: list[str]) -> ColdpressError:
    named = ", ".join(unknown[:_NAMED_IN_MESSAGES])
    more = f" and {len(unknown) - _NAMED_IN_MESSAGES} more" if len(unknown) > _NAMED_IN_MESSAGES else ""
    leaves = sorted({_split(name)[1] for name in base.shapes})
    trained = adapter.config.get("base_model_name_or_path")
    return ColdpressError(
        f"adapter '{adapter.folder}' changes modules that {base.folder} does not have: {named}{more}",
        hint=(
            f"it was trained on '{trained}'; this model has {', '.join(leaves)}"
            if trained
            else f"this model has {', '.join(leaves)}"
        ),
    )
