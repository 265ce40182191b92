"""Learning the rotation of a network's residual stream from its weights and the Gram matrices of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldpress.calibration.grams import GramFolder
from coldpress.calibration.rotation import layer_weights
from coldpress.networks.layerwise import Layerwise
from coldpress.quant.grid import Floats, Grid
from coldpress.quant.learned_rotation import STEPS, Reader, Turned, Writer, learn_rotation
from coldpress.quant.rotate import Doubles, Stream, fold_norms, rotate_values

if TYPE_CHECKING:
    import torch

#: layers that a step looks at
_LAYERS = 2


@dataclass
class StreamLearner:
    """``grams``: of the network without any rounding; ``heads``: the rotation of the values, which is not learned."""

    decoder: Layerwise
    stream: Stream
    grams: GramFolder
    heads: Doubles

    def learn(self, start: Doubles, grid: Grid, seed: int, progress: Callable[[str, float, float], None]) -> Doubles:
        """The rotation of the stream ``[K, K]`` for weights that will be rounded to ``grid``."""
        layers = self.decoder.layers
        rounds = -(-STEPS * _LAYERS // len(layers))
        random = np.random.default_rng(seed)
        order = [layers[place] for _ in range(rounds) for place in random.permutation(len(layers))]

        def weights_of(step: int) -> list[Turned]:
            progress("learning a rotation", step, STEPS)
            drawn = order[step * _LAYERS : (step + 1) * _LAYERS]
            return [turned for layer in drawn for turned in self._turned(layer)]

        return learn_rotation(start, weights_of, grid, seed)

    def _turned(self, layer: str) -> list[Turned]:
        """What reads the stream in a layer and what writes to it, with norms folded and values turned."""
        plain = layer_weights(self.decoder, layer)
        weights = rotate_values(fold_norms(plain, self.stream), self.stream, self.heads)
        grams = {f"{module}.weight": gram.matrix for gram in self.grams.get(layer) for module in gram.modules}
        readers = [
            Reader(
                self._tensor(np.concatenate([weights[name] for name in names])),
                self._tensor(_before(plain[norm] + self.stream.norm_offset, grams[names[0]])),
            )
            for norm, names in self.stream.norms.items()
            if norm in plain
        ]
        writers = [
            Writer(self._tensor(weights[name]), self._tensor(self._power(name, grams[name])))
            for name in self.stream.producers
            if name in weights
        ]
        return [*readers, *writers]

    def _power(self, name: str, gram: Floats) -> Floats:
        """The power of a writer's inputs; those that come from attention are turned within each head."""
        if name not in {output for _, output in self.stream.values}:
            return gram.diagonal()
        size = len(self.heads)
        parts = [gram[start : start + size, start : start + size] for start in range(0, len(gram), size)]
        return np.concatenate([((part @ self.heads) * self.heads).sum(axis=0) for part in parts]).astype(np.float32)

    def _tensor(self, values: Floats) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.array(values, np.float32)).to(self.decoder.device)


def _before(norm: Floats, gram: Floats) -> Floats:
    """The Gram matrix of what a norm gives before its weight ``[K]``; where that is zero, nothing is known of it."""
    inverse = np.divide(1, norm, out=np.zeros_like(norm), where=norm != 0)
    return gram * inverse * inverse[:, None]
