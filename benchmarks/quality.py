"""What int4 costs: divergence and perplexity of coldpress' models and of other quantizers', against the float source.

Two sources off the 4-bit grid, two corpora that nobody calibrates on, the same token ids for all (`quality_sources`).
Every contender starts from the same float folder, in a process and an environment of its own; those that calibrate get
the text that coldpress ships. Bytes are those of all weights, embedding and head included.

What was measured of the others stays in the scratch folder: with ``--keep``, a run goes on where another ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.measure import REPOSITORY, Claim, Options, Outcome, pinned
from benchmarks.quality_contenders import CONTENDERS, Maker, Workplace, llama_logits
from benchmarks.quality_score import write_source_logits
from benchmarks.quality_sources import CORPORA, SOURCES, calibration_ids, source_folder, text_of, windows

CALIBRATION_WINDOWS, CALIBRATION_TOKENS = 128, 256
BASE, OURS, MIXED = "coldpress rtn", "coldpress best", "coldpress best mixed"
#: Peers and what they are compared with: a mixture of bits with a mixture of bits.
PEERS = {
    "olive gptq": OURS,
    "nncf awq + scale estimation": OURS,
    "builder k_quant_mixed": MIXED,
    "llama.cpp Q4_K_M imatrix": MIXED,
}
_SAME_BYTES = 1.001  # names in the graph differ
_LEFT_OF_GAP = 0.4
NO_DATA, DEFAULT = "coldpress kquant", "coldpress default"
#: source -> the share of the divergence of rounding without data that the default leaves, and the minutes it may take
_DEFAULTS = {"smollm2_rotated": (0.45, 10 / 60), "gemma": (0.42, 15 / 60)}
_OWN_GRID = {
    (
        "gemma",
        "llama.cpp Q4_K_M imatrix",
    ): "not compared, because the source was unpacked from a Q4_K_M file of llama.cpp:"
    " most of its weights lie on the very grids that this contender chooses",
}


def run(options: Options) -> Outcome:
    """The claims about quality."""
    remarks: list[str] = []
    measured: dict[str, Any] = {name: _on_source(name, options, remarks) for name in SOURCES}
    claims = [claim for name, results in measured.items() for claim in _claims(name, results, remarks)]
    environments = {name: peers.versions(name, options) for name in peers.REQUIREMENTS}
    return Outcome({**measured, "environments": environments}, claims, remarks)


def _on_source(name: str, options: Options, remarks: list[str]) -> dict[str, Any]:
    """All contenders on one source; one that fails is left out, and a remark says why."""
    place = _workplace(source_folder(name, options), options.scratch / "quality" / name, options)
    results: dict[str, Any] = {}
    for contender, make in CONTENDERS.items():
        print(f"  {name}: {contender}", file=sys.stderr, flush=True)
        try:
            results[contender] = _kept_or_measured(contender, make, place)
        except RuntimeError as error:
            remarks.append(f"{name}: {contender} left out: {error}")
    return results


def _kept_or_measured(contender: str, make: Maker, place: Workplace) -> dict[str, Any]:
    """What was measured before of a peer, if it was on the same data; coldpress is always measured anew."""
    kept = place.calibration.parent / f"{contender}.json".replace(" ", "_")
    digest = hashlib.sha256(place.calibration.read_bytes()).hexdigest()
    if contender in PEERS and kept.exists():
        result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if result.get("calibration") in (digest, None) and "calibration" in result:
            return result
    result = _measure(make, place, kept.with_suffix(""))
    result["calibration"] = digest if result["calibration_tokens"] else None
    kept.write_text(json.dumps(result), encoding="utf-8")
    return result


def _workplace(source: Path, folder: Path, options: Options) -> Workplace:
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "calibration.npy", folder / "calibration.txt"
    ids = calibration_ids(source, CALIBRATION_WINDOWS, CALIBRATION_TOKENS)
    np.save(file, ids)
    text.write_text(text_of(source, ids), encoding="utf-8")
    for corpus in CORPORA:
        files = _files(folder, corpus)
        if not Path(files["source_logits"]).exists():
            np.save(files["windows"], windows(source, corpus, options))
            write_source_logits(source, np.load(files["windows"]), Path(files["source_logits"]))
    return Workplace(source, file, text, options)


def _files(folder: Path, corpus: str) -> dict[str, str]:
    return {"windows": str(folder / f"{corpus}.npy"), "source_logits": str(folder / f"{corpus}_logits.npy")}


def _measure(make: Maker, place: Workplace, folder: Path) -> dict[str, Any]:
    """Make a contender's model in ``folder``, score it in a fresh process, and say what it took."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = make(place, folder)
    request = {
        "kind": made.kind,
        "model": str(made.model),
        "corpora": {corpus: _files(folder.parent, corpus) for corpus in CORPORA},
        "threads": place.options.threads,
        "command": llama_logits(made.model, place.options) if made.kind == "gguf" else [],
    }
    scored = _scored(request, place.options)
    shutil.rmtree(folder)  # up to 5 GB
    return {
        "weight_bytes": made.weight_bytes,
        "minutes": sum(step.wall_s for step in made.steps) / 60,
        "cpu_minutes": sum(step.cpu_s for step in made.steps) / 60,
        "peak_anonymous_mb": max(step.peak_anonymous_mb for step in made.steps),
        "peak_resident_mb": max(step.peak_resident_mb for step in made.steps),
        "calibration_tokens": made.calibration_tokens,
        "corpora": scored,
    }


def _scored(request: dict[str, Any], options: Options) -> Any:
    command = [sys.executable, "-m", "benchmarks.quality_score", json.dumps(request)]
    environment = {**os.environ, **pinned(options.threads)}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"scoring {request['model']} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _claims(source: str, results: dict[str, Any], remarks: list[str]) -> list[Claim]:
    claims = _against_base(source, results) if {BASE, OURS} <= set(results) else []
    claims += _of_default(source, results) if {NO_DATA, DEFAULT} <= set(results) else []
    for peer, name in PEERS.items():
        if reason := _OWN_GRID.get((source, peer)):
            remarks.append(f"{source}: {peer}: {reason}")
        elif {peer, name} <= set(results):
            claims += _against_peer(source, name, results[name], peer, results[peer])
    return claims


def _against_base(source: str, results: dict[str, Any]) -> list[Claim]:
    """How much of what plain rounding loses is lost still, at the same bytes."""
    ours, base = results[OURS], results[BASE]
    share = ours["weight_bytes"] / base["weight_bytes"]
    claims = [Claim(f"{source}: {OURS}: bytes over those of {BASE}", share, _SAME_BYTES)]
    for corpus in CORPORA:
        left = f"{source}, {corpus}: {OURS}: share of the"
        kl, gap = _kl(ours, corpus) / _kl(base, corpus), _gap(ours, corpus) / _gap(base, corpus)
        claims.append(Claim(f"{left} divergence of {BASE}", kl, _LEFT_OF_GAP))
        claims.append(Claim(f"{left} perplexity gap of {BASE}", gap, _LEFT_OF_GAP))
    return claims


def _of_default(source: str, results: dict[str, Any]) -> list[Claim]:
    """What calibrating by default is worth, and that it takes seconds."""
    ours, base, (share, minutes) = results[DEFAULT], results[NO_DATA], _DEFAULTS[source]
    size = ours["weight_bytes"] / base["weight_bytes"]
    return [
        Claim(f"{source}: {DEFAULT}: bytes over those of {NO_DATA}", size, _SAME_BYTES),
        Claim(f"{source}: {DEFAULT}: seconds to make", 60 * ours["minutes"], 60 * minutes),
        *(
            Claim(
                f"{source}, {corpus}: {DEFAULT}: share of the divergence of {NO_DATA}",
                _kl(ours, corpus) / _kl(base, corpus),
                share,
            )
            for corpus in CORPORA
        ),
    ]


def _against_peer(source: str, name: str, ours: dict[str, Any], peer: str, theirs: dict[str, Any]) -> list[Claim]:
    share = ours["weight_bytes"] / theirs["weight_bytes"]
    claims = [Claim(f"{source}: {name}: bytes over those of {peer}", share, 1.0)]
    for corpus in CORPORA:
        share = _kl(ours, corpus) / _kl(theirs, corpus)
        claims.append(Claim(f"{source}, {corpus}: {name}: divergence over that of {peer}", share, 1.0))
    return claims


def _kl(result: dict[str, Any], corpus: str) -> float:
    return float(result["corpora"][corpus]["kl"])


def _gap(result: dict[str, Any], corpus: str) -> float:
    """How much perplexity was lost."""
    scores = result["corpora"][corpus]
    return float(scores["perplexity"] - scores["source_perplexity"])
