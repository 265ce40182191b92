"""GPTQ of a model in the shape of Phi-3.5-mini with 128 windows of 512 tokens: memory, and time extrapolated to all
layers.

Checkpoints with one and with two layers of random weights are quantized. What the second layer takes longer is the time
of a layer; the time of 32 is computed from it, not measured. Memory does not grow with the number of layers.
"""

from __future__ import annotations

from benchmarks.calibrate_smollm2 import coldpress_gptq
from benchmarks.measure import Claim, Options, Outcome, spread_of_usage, take_turns
from benchmarks.press_phi_shape import LAYERS, random_checkpoint
from benchmarks.quality_sources import brown_whole

_MEMORY_GB = 2.5
_VOCABULARY = 49_152  # that of the tokenizer in the folder


def run(options: Options) -> Outcome:
    """The claim about memory, and the extrapolated time."""
    text = brown_whole(options)
    small, large = (random_checkpoint(layers, options, _VOCABULARY) for layers in (1, 2))
    with small as one, large as two:
        contenders = {
            "1 layer": lambda: coldpress_gptq(one, text, options),
            "2 layers": lambda: coldpress_gptq(two, text, options),
        }
        turns = take_turns(contenders, options.rounds or 1)
    measured = {name: spread_of_usage(runs) for name, runs in turns.items()}
    first, second = (measured[name]["wall_s"]["median"] for name in contenders)
    per_layer = second - first
    extrapolated = {"seconds_a_layer": per_layer, "minutes_for_all_layers": (second + (LAYERS - 2) * per_layer) / 60}
    peak = measured["2 layers"]["peak_anonymous_mb"]["median"] / 1e3
    claim = Claim("coldpress gptq, 3.8 billion weights: anonymous memory in GB", peak, _MEMORY_GB)
    minutes = extrapolated["minutes_for_all_layers"]
    remark = f"all {LAYERS} layers would take {minutes:.0f} minutes: computed from two layers, not measured"
    return Outcome({"contenders": measured, "extrapolated": extrapolated}, [claim], [remark])
