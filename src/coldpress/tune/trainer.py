"""The Trainer of transformers with packed rows, summed losses, and a stop at the first loss that is none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.networks import heap
from coldpress.tune.checkpoints import check_space, last_good, written
from coldpress.tune.packing import Packer
from coldpress.tune.rows import NOT_SCORED, Row, Rows

#: where nobody says when checkpoints are written
_SECONDS_BETWEEN = 120.0
#: steps of many sizes leave holes in the heap; to give them back at each would cost a tenth of its time
_STEPS_BETWEEN_TRIMS = 8
#: what a step's loss is called among what the Trainer logs, and so in its checkpoints
_STEP_LOSS = "step_loss"

Progress = Callable[[str, float, float], None]


class AdapterTrainer(Trainer):
    """Trains what requires a gradient of a PEFT model whose network has a `SummedLoss` as its forward.

    A batch is all rows of a step on this device, packed in parts, which run one after the other. ``step_seconds``: of
    the steps of this run; ``scored``: the tokens that counted in them; ``resumed_at``: the step that it went on from.
    """

    def __init__(self, model: Any, args: Any, rows: Rows, held_out: Rows, packer: Packer, progress: Progress):
        self.step_seconds: list[float] = []
        self.resumed_at = self.scored = 0
        self._held_out, self._packer, self._progress = held_out, packer, progress
        self._adapted, self._folder = model, Path(args.output_dir)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,  # a sequence is all that the Trainer needs
            eval_dataset=held_out if len(held_out) else None,
            data_collator=packer,
            callbacks=[_FiniteGradients(self._folder)],
        )
        self.remove_callback(PrinterCallback)

    @property
    def losses(self) -> list[float]:
        """The loss of every step, those of runs before this one included."""
        return [entry[_STEP_LOSS] for entry in self.state.log_history if _STEP_LOSS in entry]

    def run(self, resume: Path | None, saves: bool) -> None:
        """Train to the end, from a checkpoint if there is one.

        ``saves``: whether new ones come whatever the arguments say.
        """
        if saves or self.args.save_strategy != "no":
            trained = sum(parameter.numel() for parameter in self._adapted.parameters() if parameter.requires_grad)
            check_space(self._folder, trained, self.args.save_total_limit or 1)
        self.resumed_at = 0 if resume is None else int(resume.name.rpartition("-")[2])
        self.train(resume_from_checkpoint=None if resume is None else str(resume))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The gradient of the mean loss over all tokens of the step that count, on all devices."""
        started = time.perf_counter()
        model.train()
        prepared: dict[str, Any] = self._prepare_inputs(inputs)
        parts = prepared["parts"]
        count = self._counted(parts)
        total = torch.zeros((), device=self.args.device)
        for place, part in enumerate(parts):
            is_last = place == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                loss = model(**part).loss / count
                self.accelerator.backward(loss)
            total += loss.detach()
        self._note(total)
        self.step_seconds.append(time.perf_counter() - started)
        if len(self.step_seconds) % _STEPS_BETWEEN_TRIMS == 0:
            heap.give_back()
        return total

    def _counted(self, parts: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The number of targets that this device's sum is divided by; gradients are averaged over devices
        afterwards."""
        count = torch.stack([(part["labels"] != NOT_SCORED).sum() for part in parts]).sum()
        self.scored += int(count)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count[None]).sum() / self.args.world_size
        return count

    def _note(self, total: torch.Tensor) -> None:
        """Keep the loss of a step and show it; ColdpressError where it is not finite."""
        if self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).mean()
        step, loss = self.state.global_step + 1, float(total)
        if not math.isfinite(loss):
            raise _not_finite("loss", step, last_good(self._folder, step - 2))
        self.state.log_history.append({"step": step, _STEP_LOSS: loss})
        self._progress(f"training: loss {loss:.3f}", step, self.state.max_steps)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The mean loss over the tokens of the rows held out; every device does all of them."""
        metrics = {f"{metric_key_prefix}_loss": self.mean_loss(eval_dataset or self._held_out)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """The mean loss of a token that counts."""
        model, total, count, at_once = self._adapted, 0.0, 0, self.args.eval_batch_size
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), at_once):
                for part in self._packer(rows[start : start + at_once])["parts"]:
                    total += float(model(**self._prepare_inputs(part)).loss)
                    count += int((part["labels"] != NOT_SCORED).sum())
                self._progress("measuring what is held out", min(start + at_once, len(rows)), len(rows))
        model.train(was_training)
        return total / max(1, count)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer would guess from a batch of another shape."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with written(self._folder):
            super()._save_checkpoint(model, trial)


class _FiniteGradients(TrainerCallback):
    """Stops before a gradient that is not finite reaches the weights."""

    def __init__(self, folder: Path):
        self._folder = folder

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if args.fp16:  # the scaler of float16 expects infinite gradients, and leaves such steps out
            return
        for parameter in model.parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                step = state.global_step + 1
                raise _not_finite("gradient", step, last_good(self._folder, step - 1))


class TimedCheckpoints(TrainerCallback):
    """A checkpoint every two minutes, however long a step takes; when they are written has no effect on the result."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self._last > _SECONDS_BETWEEN and state.global_step < state.max_steps:
            control.should_save, self._last = True, time.monotonic()


def _not_finite(what: str, step: int, left: Path | None) -> ColdpressError:
    kept = f"the last good checkpoint is {left}" if left else "there was no checkpoint before it"
    return ColdpressError(
        f"the {what} of step {step} is not a finite number; {kept}",
        hint="lower learning_rate, or look for rows with broken text",
        exit_code=WORK_FAILED,
    )
