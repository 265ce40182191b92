"""How far a model is from its float source on given token ids: ``python -m benchmarks.quality_score REQUEST``.

The request is JSON: ``kind`` (onnx, hf or gguf), ``model``, and for each corpus the files with its windows of token ids
[windows, tokens] and with the source's logits. The answer, the last line of stdout, has the mean Kullback-Leibler
divergence KL(source || model) in nats a token, its standard error over windows, and both perplexities. All engines
score the same ids, each in its own arithmetic: onnxruntime and llama.cpp multiply with activations in int8.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_AT_ONCE = 4


def score(request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The distances for each corpus of the request."""
    return {
        corpus: _distance(np.load(files["windows"]), np.load(files["source_logits"], mmap_mode="r"), request)
        for corpus, files in request["corpora"].items()
    }


def write_source_logits(source: Path, windows: np.ndarray, file: Path) -> None:
    """The float32 logits [windows, tokens, vocabulary] of a float Hugging Face folder."""
    made, table = file.with_suffix(".part.npy"), None
    for index, scores in enumerate(_hf(source, windows)):
        if table is None:
            table = np.lib.format.open_memmap(made, "w+", np.float32, (len(windows), *scores.shape))
        table[index] = scores
    made.rename(file)


def _distance(windows: np.ndarray, source_logits: np.ndarray, request: dict[str, Any]) -> dict[str, float]:
    from coldpress.measuring.losses import perplexity, token_losses
    from coldpress.metrics.divergence import kl_divergence

    divergences, same, losses, source_losses = [], [], [], []
    for window, expected, scores in zip(windows, source_logits, _logits(windows, request), strict=True):
        divergences.append(kl_divergence(expected, scores))
        same.append(expected.argmax(axis=-1) == scores.argmax(axis=-1))
        losses.append(token_losses(scores, window))
        source_losses.append(token_losses(expected, window))
    means = np.array([values.mean() for values in divergences])
    return {
        "kl": float(means.mean()),
        "kl_standard_error": float(means.std(ddof=1) / np.sqrt(len(means))),
        "kl_p99": float(np.quantile(np.concatenate(divergences), 0.99)),
        "top1_agreement": float(np.concatenate(same).mean()),
        "perplexity": perplexity(losses),
        "source_perplexity": perplexity(source_losses),
        "compared_tokens": windows.size,
    }


def _logits(windows: np.ndarray, request: dict[str, Any]) -> Iterable[np.ndarray]:
    """Logits [tokens, vocabulary] of each window, one at a time."""
    model = Path(request["model"])
    if request["kind"] == "gguf":
        return _gguf(request["command"], windows, request["threads"])
    if request["kind"] == "hf":
        return _hf(model, windows)
    from coldpress.graphs.scoring import Decoder

    return map(Decoder(model, request["threads"]).logits, windows)


def _hf(folder: Path, windows: np.ndarray) -> Iterator[np.ndarray]:
    from coldpress.networks.reference import Reference

    reference = Reference(folder)
    for start in range(0, len(windows), _AT_ONCE):
        yield from reference.logits(list(windows[start : start + _AT_ONCE]))


def _gguf(command: list[str], windows: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    """What another process writes: see peers/llama_logits.py. ``command`` ends with the model."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, windows)
        with subprocess.Popen([*command, str(ids), str(threads)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            vocabulary = json.loads(child.stdout.readline())
            size = windows.shape[1] * vocabulary * 4
            for _ in windows:
                raw = child.stdout.read(size)
                if len(raw) != size:
                    raise RuntimeError(f"{' '.join(command)} ended early")
                yield np.frombuffer(raw, np.float32).reshape(windows.shape[1], vocabulary)
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")


if __name__ == "__main__":
    print(json.dumps(score(json.loads(sys.argv[1]))))
