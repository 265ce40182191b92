"""Speed of a model in OpenVINO GenAI: ``python openvino_speed.py REQUEST``, which is JSON; prints numbers as JSON.

The request has ``folder``, ``prompt`` (token ids), ``new_tokens``, ``threads`` and ``repeats``. The first answer is not
counted.
"""

import json
import statistics
import sys

import numpy as np
import openvino
import openvino_genai


def main(request: str) -> None:
    asked = json.loads(request)
    pipeline = openvino_genai.LLMPipeline(asked["folder"], "CPU", INFERENCE_NUM_THREADS=asked["threads"])
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = asked["new_tokens"], True, False
    ids = np.array([asked["prompt"]], dtype=np.int64)
    tokens = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    found = [pipeline.generate(tokens, config).perf_metrics for _ in range(asked["repeats"] + 1)][1:]
    first = statistics.median(metrics.get_ttft().mean for metrics in found)
    each = statistics.median(metrics.get_tpot().mean for metrics in found)
    said = {"decode_tokens_per_second": 1e3 / each, "prompt_tokens_per_second": len(asked["prompt"]) / first * 1e3}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
