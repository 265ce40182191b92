"""From a frozen network, an adapter and rows to a trained adapter, and what is known of the training."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from coldpress.errors import ColdpressError
from coldpress.models.provenance import HeldOutLoss, Tuning
from coldpress.tune.arguments import Arguments
from coldpress.tune.checkpoints import last_checkpoint
from coldpress.tune.loss import SummedLoss
from coldpress.tune.network import Room, room_for
from coldpress.tune.packing import Packer, attention_share
from coldpress.tune.processes import count, is_first, use_own_gpu
from coldpress.tune.rows import Rows, check_ids
from coldpress.tune.trainer import AdapterTrainer, Progress, TimedCheckpoints

#: TrainingArguments whose values a report tells
_TOLD_SETTINGS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm")
#: points of the loss curve in a report
_CURVE_POINTS = 200
#: tokens in a sequence that rows are joined in, unless one row is longer
_JOINED_TOKENS = 2048
#: how far logits of joined rows may be from those of single ones: as a share of their spread, and of how far they are
#: where the rows are one text. The second is for products in bfloat16, whose order alone moves logits by a tenth of
#: their spread.
_SAME_LOGITS, _SAME_AS_APART = 0.05, 0.25


@dataclass(frozen=True)
class Setting:
    """Where and how it is computed. ``joins``: whether rows may share a sequence, if the network keeps them apart."""

    device: str
    dtype: torch.dtype
    seed: int
    joins: bool = True


class Training:
    """One training.

    ``network``: frozen; ``wrapped``: the same in PEFT's wrapper, with the adapter; ``folder``: for checkpoints.

    ``remarks``: what a reader of the report must know.
    """

    def __init__(self, wrapped: Any, arguments: Arguments, setting: Setting, data: tuple[Rows, Rows], folder: Path):
        self.model, self.network = wrapped, wrapped.get_base_model()
        self.arguments, self.setting, self.folder = arguments, setting, folder
        self.rows, self.held_out = data
        self.remarks: list[str] = []
        self._checkpoints = False
        if setting.device == "cuda":
            use_own_gpu()
            if not getattr(self.network, "is_loaded_in_4bit", False):  # those are there already, and cannot be moved
                wrapped.to("cuda")
        check_ids(self.rows, self.network.get_input_embeddings().weight.shape[0])

    def run(self, method: str, progress: Progress) -> Tuning:
        """Train to the end, going on from the last checkpoint; ``method`` is what the record calls it."""
        trainer = self._trainer(progress)
        resume = last_checkpoint(self.folder)
        before = self._loss_before(trainer)
        trainer.run(resume, saves=self.arguments.saves_by_time)
        after = None if before is None else trainer.mean_loss(self.held_out)
        times, loss = trainer.step_seconds, tuple(curve(trainer.losses))
        return Tuning(
            method,
            HeldOutLoss(len(self.held_out), self.held_out.tokens, before, after),
            rows=len(self.rows),
            tokens=self.rows.tokens,
            truncated_rows=self.rows.truncated + self.held_out.truncated,
            unscored_rows=self.rows.unscored,
            steps=trainer.state.global_step,
            epochs=round(float(trainer.state.epoch or 0), 3),
            rows_in_step=self.arguments.rows_in_step * count(),
            trained_parameters=sum(one.numel() for one in self.model.parameters() if one.requires_grad),
            seconds_per_step=statistics.median(times) if times else None,
            step_seconds=tuple(round(one, 4) for one in times[-_CURVE_POINTS:]),
            scored_tokens=trainer.scored,
            resumed_at=trainer.resumed_at,
            device=self.setting.device,
            dtype=str(self.setting.dtype).removeprefix("torch."),
            packed=self._packer.joins,
            checkpointing=self._checkpoints,
            loss=loss,
            settings=tuple((name, _value(getattr(trainer.args, name))) for name in _TOLD_SETTINGS),
        )

    def _trainer(self, progress: Progress) -> AdapterTrainer:
        arguments = self.arguments
        if self._room.needs_checkpointing and arguments.checkpointing is None:
            arguments = replace(arguments, given={**arguments.given, "gradient_checkpointing": True})
            self.remarks.append("Activations are computed twice (gradient checkpointing), as memory is short.")
        args = arguments.make(self.folder, self.setting.seed, self.setting.device, self.setting.dtype)
        if args.eval_strategy != "no" and not len(self.held_out):
            raise ColdpressError(
                "eval_strategy and eval_steps want rows to measure the loss on, and none are held out",
                hint="leave them out, or use eval_dataset_size",
            )
        self._checkpoints = bool(arguments.checkpointing)
        if self._checkpoints:
            self.network.enable_input_require_grads()
        self._loss.smoothing = args.label_smoothing_factor
        self._loss.install()
        trainer = AdapterTrainer(self.model, args, self.rows, self.held_out, self._packer, progress)
        if arguments.saves_by_time:
            trainer.add_callback(TimedCheckpoints())
        return trainer

    @cached_property
    def _loss(self) -> SummedLoss:
        return SummedLoss(self.network, self.setting.dtype)

    @cached_property
    def _room(self) -> Room:
        longest = max(map(len, [*self.rows.rows, *self.held_out.rows]))
        return room_for(self.network, self.setting.device, longest, bool(self.arguments.checkpointing))

    @cached_property
    def _packer(self) -> Packer:
        joins = self.setting.joins
        if joins and not keeps_rows_apart(self._loss):
            joins = False
            self.remarks.append(
                f"{type(self.network).__name__} does not keep packed rows apart, so each has its own sequence."
            )
        most = min(_JOINED_TOKENS, self._room.tokens_at_once)
        return Packer(most, self._room.tokens_at_once, attention_share(self.network), joins)

    def _loss_before(self, trainer: AdapterTrainer) -> float | None:
        """The loss of the rows held out before the first step; of a run that goes on, what the first one measured."""
        if not len(self.held_out):
            return None
        file = self.folder / "before.json"
        if file.is_file():
            return float(json.loads(file.read_text(encoding="utf-8")))
        found = trainer.mean_loss(self.held_out)
        if is_first():
            file.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
            file.with_suffix(".part").replace(file)
        return found


def _value(given: Any) -> str | float:
    """A setting as plain data; enumerations by their word."""
    word = getattr(given, "value", given)
    return word if isinstance(word, int | float) else str(word)


def keeps_rows_apart(loss: SummedLoss) -> bool:
    """Whether a network gives the second of two joined rows the logits that it has alone."""
    device = loss.model.device
    vocabulary = loss.model.config.get_text_config().vocab_size
    rows = torch.arange(1, 25, device=device).remainder(vocabulary).reshape(2, 12)
    places = torch.arange(12, device=device)[None]
    was_training = loss.model.training
    loss.model.eval()
    alone = loss.logits(rows[1:], places)[0].float()
    joined = loss.logits(rows.reshape(1, -1), torch.cat([places, places], dim=1))[0, 12:].float()
    one_text = loss.logits(rows.reshape(1, -1), torch.arange(24, device=device)[None])[0, 12:].float()
    loss.model.train(was_training)
    allowed = max(_SAME_LOGITS * alone.std(), _SAME_AS_APART * (one_text - alone).abs().mean())
    return bool((joined - alone).abs().mean() <= allowed)


def curve(losses: list[float]) -> list[tuple[int, float]]:
    """Pairs of step and loss, means of neighbouring steps where there are many."""
    size = -(-len(losses) // _CURVE_POINTS) or 1
    spans = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [(min((place + 1) * size, len(losses)), statistics.fmean(span)) for place, span in enumerate(spans)]
