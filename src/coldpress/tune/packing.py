"""Rows one behind the other in sequences, so that no work is done on padding.

A sequence says by its positions, which begin at zero with each row, where rows end; transformers lets attention stay
within a row then. The rows of one step are spread over as many sequences as cost least: the work on padding, which few
sequences have little of, against that of attention over rows that do not see each other, which short sequences have
little of. The rows of a step stay those that they would be without packing, and the loss is the same mean over their
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.tune.rows import NOT_SCORED, Row

if TYPE_CHECKING:
    import torch

Part = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Packer:
    """Turns the rows of a step into parts that run one after the other, each ``[sequences, tokens]``.

    ``most_tokens``: in a sequence; a longer row has one of its own. ``tokens_at_once``: in a part, padding included,
    unless one sequence is longer. ``attention_share``: what attention over one token costs as a share of all other work
    on a token. ``joins``: whether several rows may share a sequence.
    """

    most_tokens: int
    tokens_at_once: int
    attention_share: float
    joins: bool = True

    def __call__(self, rows: Sequence[Row]) -> dict[str, list[Part]]:
        """As the ``data_collator`` of a Trainer."""
        return {"parts": list(map(_part, self.parts(rows)))}

    def parts(self, rows: Sequence[Row]) -> list[list[list[Row]]]:
        """The rows as parts, a part as sequences, a sequence as rows."""
        sequences = self._cheapest(rows) if self.joins else [[row] for row in rows]
        found: list[list[list[Row]]] = []
        longest = 0
        for sequence in sorted(sequences, key=_length):
            longest = max(longest, _length(sequence))
            if not found or longest * (len(found[-1]) + 1) > self.tokens_at_once:
                found.append([])
                longest = _length(sequence)
            found[-1].append(sequence)
        return found

    def _cheapest(self, rows: Sequence[Row]) -> list[list[Row]]:
        limit = max(self.most_tokens, *map(len, rows))
        spread = (_spread(rows, count) for count in _counts(-(-_length(rows) // limit), len(rows)))
        return min((one for one in spread if max(map(_length, one)) <= limit), key=self._cost)

    def _cost(self, sequences: list[list[Row]]) -> float:
        longest = max(map(_length, sequences))
        return len(sequences) * longest * (1 + self.attention_share * longest)


def attention_share(model: Any) -> float:
    """What attention over one more token costs, as a share of the products with the weights of a decoder layer."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embeddings = model.get_input_embeddings().weight.numel()
    weights = (sum(parameter.numel() for parameter in model.parameters()) - embeddings) / config.num_hidden_layers
    return 2 * config.num_attention_heads * width / max(1.0, weights)


def _counts(fewest: int, most: int) -> Iterator[int]:
    """How many sequences are tried: all of a few, a tenth more each time of many."""
    count = fewest
    while count < most:
        yield count
        count += max(1, count // 10)
    yield most


def _spread(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """The rows on ``count`` sequences about equally long: the longest first, each to the shortest sequence.

    Graham, "Bounds on multiprocessing timing anomalies" (1969).
    """
    sequences: list[list[Row]] = [[] for _ in range(count)]
    lengths = [(0, place) for place in range(count)]
    for row in sorted(rows, key=len, reverse=True):
        length, place = lengths[0]
        sequences[place].append(row)
        heapreplace(lengths, (length + len(row), place))
    return sequences


def _length(sequence: Sequence[Row]) -> int:
    return sum(map(len, sequence))


def _part(sequences: Sequence[Sequence[Row]]) -> Part:
    """Tensors ``[sequences, tokens]``; what fills up a sequence is a row of its own that nothing is predicted in."""
    import torch

    shape = len(sequences), max(map(_length, sequences))
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets = np.full(shape, NOT_SCORED, np.int64)
    for place, sequence in enumerate(sequences):
        end = 0
        for row in sequence:
            start, end = end, end + len(row)
            ids[place, start:end], targets[place, start:end] = row.ids, row.targets
            positions[place, start:end] = np.arange(len(row))
        positions[place, end:] = np.arange(shape[1] - end)
    arrays = {"input_ids": ids, "position_ids": positions, "labels": targets}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
