"""Store a token embedding and a head with the same numbers once.

Exporters write the head's weight turned over, and so a second time. Here the head reads the embedding through a
Transpose, which runtimes fold when they load the graph. Codes of a quantized embedding (GatherBlockQuantized) and head
(MatMulNBits), which have other shapes, share their bytes in the file where they lie in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldpress.graphs.ties import share_bytes, stored_twice, tie
from coldpress.parts.surgery import Surgery

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class TieWordEmbeddings(Surgery):
    """Store a token embedding and a head with the same numbers once."""

    def operate(self, model: ir.Model) -> int:
        found = list(stored_twice(model))
        for product, table in found:
            tie(product, table)
        return len(found) + share_bytes(model)
