"""Which arrays of a batch a model takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from coldpress.errors import ColdpressError

#: what tokenizers give along, and many models do without
_OPTIONAL = ("attention_mask", "token_type_ids", "position_ids")


def matched(given: Mapping[str, np.ndarray], wanted: Collection[str], model: str) -> dict[str, np.ndarray]:
    """The arrays under the names of the model's inputs.

    A single array is what a model with a single input takes, whatever they are called. Masks, types and positions of
    tokens are left out where the model has no such input; ColdpressError for all else that it does not have.
    """
    if len(given) == len(wanted) == 1:
        return dict(zip(wanted, given.values(), strict=True))
    for name in given:
        if name not in wanted and name not in _OPTIONAL:
            raise ColdpressError(
                f"the data gives '{name}', which is no input of {model}; its inputs: {', '.join(wanted)}",
                hint="use data of another kind, or give its arrays the names of the model's inputs",
            )
    return {name: array for name, array in given.items() if name in wanted}
