"""How far a model may be from its source, by precision, and the reasons.

The limits say what is *broken or careless*, not what is best: a model beyond them should not leave the house.
Measured on SmolLM2-135M-Instruct (2,048 tokens of the held-out text for the real models, 1,024 for weights rounded
in the source); larger models lose less, so a small model sets the pace:

====================================  ======  ================  =====
weights                               KL      perplexity ratio  top-1
====================================  ======  ================  =====
float16                               0.000   1.000             1.000
bfloat16                              0.0001  0.999             0.994
int8, block 32                        0.001   0.997             0.975
int8, one scale a row                 0.004   1.009             0.951
int8, activations rounded to int8     0.004   1.004             0.959
int4 with zero points, block 32       0.25    1.18              0.71
int4 of a common builder, block 32    0.39    1.29              0.63
int4, absolute maximum, block 32      0.49    1.44              0.60
one layer of 210 set to zero          0.12    1.17              0.80
one layer with swapped columns        0.38    1.62              0.67
====================================  ======  ================  =====

- fp32: only the order of additions differs, which stays below 1e-5; 1e-4 leaves room for other kernels.
- fp16 and bf16: 11 and 8 significant bits in weights, and in activations where the device computes so, which costs
  more than the rounded weights above.
- int8: the worst sound scheme above, times seven for models with outlier activations.
- int4: what rounding to nearest costs on a small model just fits; the bluntest form of it does not. One broken
  layer of many can hide below that; the error of each layer's weights in the report shows it.
- An adapter: its products are computed in the float type of the graph and add no rounding of their own, so the model
  with it may be as far from PEFT's as the base from its source, and no further (KL). That limit is loose where the base
  is int4 of a float source, so the change it makes to the logits is compared with the one that PEFT makes: what
  rounding did to the base is in both of the model's logits and falls out. From half to one and a half of it leaves room
  for the int4 base's own answer to the change; a scaling that is wrong by two, a wrong sign, or layers in the wrong
  order are outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean


@dataclass(frozen=True)
class Tolerance:
    """Limits against the source; None does not limit.

    ``kl``: highest mean KL divergence in nats a token. ``perplexity_ratio``: highest perplexity, in units of the
    source's. ``top1_agreement``, ``generation_agreement``: lowest share of tokens on which both agree, on text and in
    the model's own answers. ``relative``: of a graph made from a graph, the largest difference of an output in units of
    what it was; None leaves that to the pass.
    """

    kl: float | None = None
    perplexity_ratio: float | None = None
    top1_agreement: float | None = None
    generation_agreement: float | None = None
    relative: float | None = None


TOLERANCES = {
    "fp32": Tolerance(kl=1e-4, perplexity_ratio=1.001, top1_agreement=0.995, generation_agreement=0.97),
    "fp16": Tolerance(kl=2e-3, perplexity_ratio=1.005, top1_agreement=0.98, generation_agreement=0.93),
    "bf16": Tolerance(kl=0.01, perplexity_ratio=1.01, top1_agreement=0.95, generation_agreement=0.9),
    "int8": Tolerance(kl=0.03, perplexity_ratio=1.03, top1_agreement=0.9, generation_agreement=0.8),
    "int4": Tolerance(kl=0.5, perplexity_ratio=1.35, top1_agreement=0.55, generation_agreement=0.45),
}

#: how much of PEFT's change of the logits an adapter must at least and may at most make
_EFFECT = (0.5, 1.5)
_AT_MOST = {"kl": "KL divergence", "perplexity_ratio": "perplexity against the source's"}
_AT_LEAST = {
    "top1_agreement": "share of tokens that agree with the source on text",
    "generation_agreement": "share of tokens that agree with the source in answers",
}
_SHORT = {
    "kl": "kl",
    "ppl": "perplexity_ratio",
    "perplexity": "perplexity_ratio",
    "perplexity_ratio": "perplexity_ratio",
    "top1": "top1_agreement",
    "top1_agreement": "top1_agreement",
    "generation": "generation_agreement",
    "generation_agreement": "generation_agreement",
    "relative": "relative",
}


def judge(numbers: Mapping[str, Any], tolerance: Tolerance) -> list[str]:
    """One sentence for each broken limit; an empty list means verified.

    ``numbers`` are those of the metric ``divergence``. A number that is not one (NaN) breaks its limit. What was not
    measured breaks it too, except the numbers about answers, which a model without genai_config.json cannot give.
    """
    return limits_broken(numbers, tolerance) + _faults(numbers)


def limits_broken(numbers: Mapping[str, Any], tolerance: Tolerance) -> list[str]:
    """The sentences of `judge` about what the layers of a model compute."""
    broken = []
    for name, meaning in {**_AT_MOST, **_AT_LEAST}.items():
        limit, value = getattr(tolerance, name), numbers.get(name)
        if limit is None or (value is None and name == "generation_agreement"):
            continue
        if value is None:
            broken.append(f"{meaning} was not measured (limit {limit:g})")
        elif name in _AT_MOST and not value <= limit:
            broken.append(f"{meaning} is {value:.4g}, above the limit {limit:g}")
        elif name in _AT_LEAST and not value >= limit:
            broken.append(f"{meaning} is {value:.4g}, below the limit {limit:g}")
    return broken


def judge_adapter(numbers: Mapping[str, Any], tolerance: Tolerance) -> list[str]:
    """One sentence for each limit that an adapter breaks; ``numbers`` are its entry in those of
    ``adapter_divergence``."""
    kl, effect, limit = numbers["kl"], numbers["effect"], tolerance.kl
    if limit is not None and not kl <= limit:
        return [f"adapter {numbers['name']}: KL divergence from PEFT's is {kl:.4g}, above the limit {limit:g}"]
    if effect is not None and not _EFFECT[0] <= effect <= _EFFECT[1]:
        return [f"adapter {numbers['name']}: it makes {effect:.3g} times the change that PEFT's makes"]
    return []


def parse_tolerance(text: str) -> Tolerance:
    """A tolerance from a command line; it limits only what it names.

    ``0.1`` is a KL divergence, ``5%`` an increase of perplexity; ``kl=0.1,ppl=1.05,top1=0.9,generation=0.8``
    sets any of them.
    """
    if "=" not in text:
        if text.strip().endswith("%"):
            return Tolerance(perplexity_ratio=1 + _number(text.strip()[:-1], text) / 100)
        return Tolerance(kl=_number(text, text))
    limits = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in _SHORT:
            raise ColdpressError(f"unknown tolerance '{name}' in '{text}'", hint=did_you_mean(name, _SHORT))
        limits[_SHORT[name]] = _number(value, text)
    return Tolerance(**limits)


def relative_limit(text: str | None) -> float | None:
    """The limit for graphs made from graphs that a tolerance on a command line sets, if it does."""
    return parse_tolerance(text).relative if text else None


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ColdpressError(
            f"'{value}' in the tolerance '{text}' is not a number from 0 up", hint="write 0.1, 5% or kl=0.1,ppl=1.05"
        )
    return number


def _faults(numbers: Mapping[str, Any]) -> list[str]:
    faults = []
    if numbers.get("looping_answers", 0) > 0:
        faults.append(f"{numbers['looping_answers']} of the answers repeat themselves where the source does not")
    if numbers.get("stop_tokens_missing", 0) > 0:
        faults.append(f"the source's stop tokens {numbers.get('missing_stop_tokens', '')} are not in genai_config.json")
    if (differ := numbers.get("prompts_differ", 0)) > 0:
        more = f" (so do {differ - 1} more of {numbers['prompts_compared']} texts and chats)" if differ > 1 else ""
        faults.append(f"{numbers['prompt_difference']}{more}")
    return faults
