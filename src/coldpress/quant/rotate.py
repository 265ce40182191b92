"""Rotation of the residual stream and of the values, folded into the weights: the network computes what it did.

Outliers are what a block's grid is worst at, and a rotation spreads them over all channels. RMSNorm without its weight
commutes with an orthogonal matrix, so once the weights of the norms are folded into the linears that follow, the whole
stream can be turned: what writes to it ends with the rotation, what reads from it begins with its inverse. As in QuaRot
(https://arxiv.org/abs/2404.00456) and SpinQuant (https://arxiv.org/abs/2405.16406), only the rotations that cost
nothing at run time are done here. A network that normalizes what a layer *writes* to the stream (Gemma 2 and 3), or
that subtracts means (LayerNorm), cannot be turned this way.

All functions give back a new dict; arrays that do not change are the same objects. Linears are ``[outputs, inputs]``.
Weights of the stream that are not given are passed over, so a network can be turned a layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldpress.errors import ColdpressError
from coldpress.quant.grid import Floats

Doubles = NDArray[np.float64]
Weights = dict[str, Floats]


@dataclass(frozen=True)
class Stream:
    """The names of the weights at the residual stream, and of the pairs around attention.

    ``embedding``, ``head``: ``[vocabulary, K]``; a head that is absent from the weights is tied to the embedding.
    ``norms``: RMSNorm weight ``[K]`` -> the linears that read it (the last norm -> the head). ``producers``: linears
    ``[K, inputs]`` whose output is added to the stream. ``values``: (value, output) linears of each attention, with
    ``kv_heads`` heads in the first and ``heads`` in the second. ``norm_offset``: what the network adds to a norm's
    weight before it multiplies. The bias of ``x.weight`` is ``x.bias``, where there is one.
    """

    embedding: str
    head: str
    norms: Mapping[str, tuple[str, ...]]
    producers: tuple[str, ...]
    values: tuple[tuple[str, str], ...] = ()
    heads: int = 1
    kv_heads: int = 1
    norm_offset: float = 0.0
    consumers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(name for readers in self.norms.values() for name in readers)
        if self.head not in names:
            raise ColdpressError(f"no norm is followed by the head '{self.head}', so its input cannot be turned")
        object.__setattr__(self, "consumers", names)


def fold_norms(weights: Mapping[str, Floats], stream: Stream) -> Weights:
    """Multiply each norm's weight into the linears that read it and set the norm to one; a tied head is untied."""
    folded = dict(weights)
    _untie(folded, stream)
    for norm, readers in _given(stream.norms, folded).items():
        factor = folded[norm].astype(np.float64) + stream.norm_offset
        for name in _given(readers, folded):
            folded[name] = (folded[name] * factor).astype(folded[name].dtype)
        folded[norm] = np.full_like(folded[norm], 1 - stream.norm_offset)
    return folded


def rotate_stream(weights: Mapping[str, Floats], stream: Stream, rotation: Doubles) -> Weights:
    """Turn the residual stream by an orthogonal ``rotation [K, K]``: the new stream is the old times ``rotation``.

    The norms must have been folded; a norm whose weight is not constant raises ColdpressError.
    """
    for norm in _given(stream.norms, weights):
        if np.ptp(weights[norm]) != 0:
            raise ColdpressError(f"the weight of the norm '{norm}' is not constant: fold the norms before a rotation")
    turned = dict(weights)
    _untie(turned, stream)
    for name in _given((stream.embedding, *stream.consumers), turned):
        turned[name] = times(turned[name], rotation)
    for name in _given(stream.producers, turned):
        turned[name] = times(turned[name].T, rotation).T
        bias = _bias(name)
        if bias in turned:
            turned[bias] = times(turned[bias], rotation)
    return turned


def rotate_values(weights: Mapping[str, Floats], stream: Stream, rotation: Doubles) -> Weights:
    """Turn the values of every head by an orthogonal ``rotation [head_size, head_size]``.

    All heads are turned alike, so it does not matter how many query heads share a value head.
    """
    turned = dict(weights)
    for value, output in stream.values:
        if value not in turned:
            continue
        turned[value] = _times_heads(turned[value].T, rotation, stream.kv_heads).T
        turned[output] = _times_heads(turned[output], rotation, stream.heads)
        bias = _bias(value)
        if bias in turned:
            turned[bias] = _times_heads(turned[bias][None], rotation, stream.kv_heads)[0]
    return turned


def rotate(weights: Mapping[str, Floats], stream: Stream, seed: int) -> Weights:
    """Fold the norms, then turn the stream and the values by random rotations that follow from ``seed``."""
    folded = fold_norms(weights, stream)
    turned = rotate_stream(folded, stream, random_rotation(folded[stream.embedding].shape[1], seed))
    if not stream.values:
        return turned
    size = turned[stream.values[0][0]].shape[0] // stream.kv_heads
    return rotate_values(turned, stream, random_rotation(size, seed + 1))


def random_rotation(size: int, seed: int) -> Doubles:
    """An orthogonal matrix ``[size, size]``: Hadamard with random signs where one is known, else QR of random numbers.

    A Hadamard matrix spreads an outlier over all channels evenly; no rotation lowers the largest channel more.
    """
    random = np.random.default_rng(seed)
    matrix = hadamard(size)
    if matrix is not None:
        rows, columns = random.choice([-1.0, 1.0], (2, size))
        turned: Doubles = rows[:, None] * matrix * columns / np.sqrt(size)
        return turned
    orthogonal, triangular = np.linalg.qr(random.standard_normal((size, size)))
    return orthogonal * np.sign(np.diag(triangular))


def hadamard(size: int) -> Doubles | None:
    """A Hadamard matrix ``[size, size]`` of ones and minus ones by Sylvester's and Paley's constructions, or None."""
    if size in (1, 2):
        return np.array([[1.0, 1.0], [1.0, -1.0]])[:size, :size]
    if size % 4:
        return None
    if _is_prime(size - 1):
        return _paley(size - 1)
    half = hadamard(size // 2)
    if half is not None:
        return np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), half)
    return _second_paley(size // 2 - 1) if _is_prime(size // 2 - 1) else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _residues(prime: int) -> Doubles:
    """The matrix of quadratic characters of ``row - column`` modulo a prime."""
    character = np.full(prime, -1.0)
    character[np.arange(1, prime) ** 2 % prime] = 1
    character[0] = 0
    return character[np.subtract.outer(np.arange(prime), np.arange(prime)) % prime]


def _paley(prime: int) -> Doubles:
    """Paley's first construction, of size ``prime + 1``; the prime is 3 modulo 4."""
    core = np.ones((prime + 1, prime + 1))
    core[1:, 1:] = _residues(prime)
    core[1:, 0], core[0, 0] = -1, 0
    return core + np.eye(prime + 1)


def _second_paley(prime: int) -> Doubles:
    """Paley's second construction, of size ``2 * (prime + 1)``; the prime is 1 modulo 4."""
    core = np.ones((prime + 1, prime + 1))
    core[1:, 1:] = _residues(prime)
    core[0, 0] = 0
    plain, identity = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
    return np.kron(core, plain) + np.kron(np.eye(prime + 1), identity)


def _given(names: Any, weights: Mapping[str, Floats]) -> Any:
    """Those of the names, or the entries of a mapping by name, whose weights are there."""
    if isinstance(names, Mapping):
        return {name: value for name, value in names.items() if name in weights}
    return [name for name in names if name in weights]


def _untie(weights: Weights, stream: Stream) -> None:
    """A head that is tied to the embedding becomes a matrix of its own."""
    if stream.embedding in weights:
        weights.setdefault(stream.head, weights[stream.embedding])


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def times(weight: Floats, rotation: Doubles) -> Floats:
    """``weight [..., K] @ rotation`` in double precision, in chunks of rows, in the type of the weight."""
    rows = np.atleast_2d(weight)
    if rows.shape[1] != len(rotation):
        raise ColdpressError(f"a rotation of size {len(rotation)} cannot turn a weight of shape {list(weight.shape)}")
    turned = np.empty(rows.shape, weight.dtype)
    for row in range(0, len(rows), 1024):
        turned[row : row + 1024] = rows[row : row + 1024] @ rotation
    return turned.reshape(weight.shape)


def _times_heads(weight: Floats, rotation: Doubles, heads: int) -> Floats:
    """Every head's ``head_size`` columns of ``weight [rows, heads * head_size]`` times ``rotation``."""
    if weight.shape[1] != heads * len(rotation):
        raise ColdpressError(f"{heads} heads of size {len(rotation)} do not make the columns of {list(weight.shape)}")
    return times(weight.reshape(-1, len(rotation)), rotation).reshape(weight.shape)
