"""A token embedding that is stored a second time, turned over, as the weight of the head: of a small language model it
is a quarter of all bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldpress.graphs.ties import stored_twice, tie
from coldpress.parts import Finding, Rule
from coldpress.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class UntiedEmbeddings(Rule):
    """A head whose weight is the token embedding turned over."""

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        for product, table in stored_twice(graph):
            yield Finding(
                f"its weight holds the {table.const_value.nbytes:,} bytes of '{table.name}' turned over",
                "let it read the embedding: the surgery tie_word_embeddings",
                str(product.name),
                severity="warning",
            )

    def mend(self, graph: ir.Model, target: Target) -> int:
        found = list(stored_twice(graph))
        for product, table in found:
            tie(product, table)
        return len(found)
