"""Text generation: a decoder that continues texts and answers in chats.

Measured on SmolLM2-135M-Instruct (2,048 tokens of the held-out text for the real models, 1,024 for weights rounded in
the source); larger models lose less, so a small model sets the pace:

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

The limits say what is *broken or careless*, not what is best: a model beyond them should not leave the house.

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

from collections.abc import Iterable, Mapping
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of
from coldpress.models.tokenizers.tokenizer import has_tokenizer
from coldpress.parts.task import PRECISIONS, Criterion, Task

#: how much of PEFT's change of the logits an adapter must at least and may at most make
_EFFECT = (0.5, 1.5)


def _by_precision(*limits: float) -> dict[str, float]:
    return dict(zip(PRECISIONS, limits, strict=True))


class TextGeneration(Task):
    """Compared on held-out text, token by token, and in the model's own answers to chat prompts."""

    title = "text generation"
    pipeline = "text-generation"
    loader = "AutoModelForCausalLM"
    classes = ("CausalLM", "LMHeadModel")
    seen_on = "SmolLM2-135M-Instruct, Gemma-3-270M; tiny models of all of architectures.md"
    runtime = "onnxruntime-genai"
    criteria = (
        Criterion(
            "kl",
            "KL divergence",
            "mean over tokens, in nats; 0 is identical",
            "lower",
            "KL divergence",
            _by_precision(1e-4, 2e-3, 0.01, 0.03, 0.5),
            usual={
                "fp32": (0, 1e-5),
                "fp16": (0, 1e-4),
                "bf16": (0, 2e-4),
                "int8": (0.001, 0.004),
                "int4": (0.08, 0.25),
            },
        ),
        Criterion("kl_p99", "KL divergence, worst 1 %", "99th percentile over tokens", "lower"),
        Criterion(
            "perplexity_ratio",
            "",
            "perplexity in units of the source's",
            "lower",
            "perplexity against the source's",
            _by_precision(1.001, 1.005, 1.01, 1.03, 1.35),
            names=("ppl", "perplexity"),
        ),
        Criterion(
            "top1_agreement",
            "Same next token",
            "both models rank the same token first",
            "higher",
            "share of tokens that agree with the source on text",
            _by_precision(0.995, 0.98, 0.95, 0.9, 0.55),
            names=("top1",),
            is_share=True,
            usual={"fp16": (0.999, 1), "bf16": (0.99, 1), "int8": (0.95, 0.975), "int4": (0.7, 0.83)},
        ),
        Criterion(
            "generation_agreement",
            "Same answers",
            "generated answers against the source's",
            "higher",
            "share of tokens that agree with the source in answers",
            _by_precision(0.97, 0.93, 0.9, 0.8, 0.45),
            names=("generation",),
            is_share=True,
            may_lack=True,
        ),
    )
    #: the table above, and Gemma 3 270M and SmolLM2 off its grid on two texts (benchmarks/results/quality.json)
    usual_of = "models of 0.1 to 0.3 billion weights; larger ones lose less"
    percent = "perplexity_ratio"
    metric = "divergence"
    adapter_metric = "adapter_divergence"
    layer_metric = "worst_layer"
    metrics = ("generation", "memory")
    labelled = "prompts"

    def check(self, source: Model | Planned) -> None:
        folder = settings_of(source)
        if folder is not None and not has_tokenizer(folder):
            raise ColdpressError(
                f"{folder} has no tokenizer (tokenizer.json, or files to make it of), so the result cannot be compared"
                " on text",
                hint="put the tokenizer's files there, or turn verification off with --no_verify",
            )

    def measured(self, model: Model) -> tuple[str, ...]:
        return self.metrics if (model.path / "genai_config.json").exists() else ()

    def judge(self, numbers: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
        """Limits, faults of answers, which count at any tolerance, and what is wrong with adapters."""
        adapters = numbers.get("adapters", ())
        return [*self.broken(numbers, limits), *_faults(numbers), *_of_adapters(adapters, limits.get("kl"))]


def _of_adapters(adapters: Iterable[Mapping[str, Any]], limit: float | None) -> list[str]:
    """One sentence for each adapter that is too far from PEFT's; they are the numbers of ``adapter_divergence``."""
    reasons = []
    for one in adapters:
        kl, effect = one["kl"], one["effect"]
        if limit is not None and not kl <= limit:
            reasons.append(f"adapter {one['name']}: KL divergence from PEFT's is {kl:.4g}, above the limit {limit:g}")
        elif effect is not None and not _EFFECT[0] <= effect <= _EFFECT[1]:
            reasons.append(f"adapter {one['name']}: it makes {effect:.3g} times the change that PEFT's makes")
    return reasons


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
