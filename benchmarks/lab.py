"""The two labs of examples/ on SmolLM2, as make types them, from an empty cache: their times, losses and accuracies.

Travel: the loss on the rows held out is measured by the training itself, on the quantized base, before and after; here
once more on the int4 ONNX model that comes out, with its adapter active and without. What the adapter gains there is
compared with what it gained in training. Emotion: how often the model names the right tone before training, after it,
and in int4.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import REPOSITORY, Claim, Options, Outcome, Usage, pinned, run_checked

_TRAVEL = REPOSITORY / "examples/travel/models/smollm2"
_SAID = re.compile(r"^models/emotion/(\w+)\s+([\d.]+)% right", re.M)


def run(options: Options) -> Outcome:
    """The claims about the labs."""
    travel, emotion = _travel(options), _emotion(options)
    return Outcome({"travel": travel, "emotion": emotion}, claims(travel, emotion))


def claims(travel: dict[str, Any], emotion: dict[str, Any]) -> list[Claim]:
    return [
        Claim("travel: fall of the loss on rows held out, as a share", travel["fall"], 0.30, "higher"),
        Claim("travel: share of that gain that int4 ONNX with the adapter keeps", travel["kept"], 0.95, "higher"),
        Claim("emotion: share of right answers after training", emotion["tuned"], 0.5, "higher"),
        Claim("emotion: right answers in int4 as a share of those", emotion["int4"] / emotion["tuned"], 0.95, "higher"),
    ]


def _made(target: str, options: Options) -> Usage:
    shutil.rmtree(REPOSITORY / "examples" / target.removeprefix("example-") / "models", ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as cache:
        environment = {**pinned(options.threads), "COLDPRESS_CACHE": cache}
        return run_checked(["make", "--assume-old=setup", target], environment, REPOSITORY)


def _travel(options: Options) -> dict[str, Any]:
    used = _made("example-travel", options)
    reports = {step: _report(_TRAVEL / step) for step in ("awq", "ft", "onnx-ao")}
    tuning = reports["ft"]["tuning"]
    before, after = (tuning["held_out"][f"loss_{when}"] for when in ("before", "after"))
    onnx = {
        "without": _loss(_TRAVEL / "onnx-ao/model", None, options),
        "with": _loss(_TRAVEL / "onnx-ao/model", "adapter_weights.onnx_adapter", options),
    }
    return {
        "wall_s": used.wall_s,
        "peak_anonymous_mb": used.peak_anonymous_mb,
        "seconds": {step: report["seconds"] for step, report in reports.items()},
        "seconds_per_step": tuning["seconds_per_step"],
        "loss_before": before,
        "loss_after": after,
        "loss_in_onnx": onnx,
        "fall": 1 - after / before,
        "kept": (before - onnx["with"]) / (before - after),
    }


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def _loss(folder: Path, adapter: str | None, options: Options) -> float:
    """Mean loss of a token of the held-out rows, which are those that the training read, cut in the same way."""
    from coldpress.graphs.scoring import Decoder
    from coldpress.measuring.losses import token_losses
    from coldpress.models.model import Model
    from coldpress.parts import Context, DataSource
    from coldpress.parts.schema import build
    from coldpress.target import Target
    from coldpress.tune.rows import read_rows

    given = _report(_TRAVEL / "ft")["passes"][0]["parameters"]["eval_data"]
    [files] = given["parameters"]["data_files"]
    given["parameters"]["data_files"] = [str(REPOSITORY / "examples/travel" / files)]
    context = Context(options.scratch, Target(threads=options.threads))
    rows = read_rows(build(DataSource, given, "data"), Model(_TRAVEL / "ft/model", "hf", ""), context, None)
    decoder, file = Decoder(folder, options.threads), folder / adapter if adapter else None
    return float(np.concatenate([token_losses(decoder.logits(row.ids, file), row.ids) for row in rows.rows]).mean())


def _emotion(options: Options) -> dict[str, Any]:
    used = _made("example-emotion", options)
    found = {name: float(share) / 100 for name, share in _SAID.findall(used.output)}
    return {"wall_s": used.wall_s, "peak_anonymous_mb": used.peak_anonymous_mb, **found}
