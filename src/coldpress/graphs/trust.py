"""Which configurations come out right: a table of those that were swept, and a trial for every other one, before any
work.

The table (``architectures.json``, written by ``docs/sweep.py``) holds for each class of transformers the settings that
a tiny model came out right with. A configuration all of whose settings are there is pressed; another is tried on a tiny
model of its own (``trial.py``), once, and refused if that differs from transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.jobs.store import Store

_TABLE = Path(__file__).with_name("architectures.json")
#: raised when what a trial does changes
_VERSION = 2
_NEEDS = ("mobius-onnx", "transformers", "onnxruntime")
#: settings that have no effect on what a model computes from tokens
_WITHOUT_EFFECT = re.compile(
    r"(.*_)?token_id(_list)?|token_id|.*dropout\w*|.*_?pdrop|init\w*|.*initializer\w*|(torch_)?dtype|transformers_version"
    r"|architectures|_name_or_path|name_or_path|auto_map|use_cache|id2label|label2id|num_labels|problem_type|return_dict|output_\w+"
    r"|pretraining_tp|task_specific_params|quantization_config|\w*loss_coef\w*|router_\w*noise|tokenizer_class|prefix"
    r"|vocab_size|finetuning_task|chunk_size_feed_forward|classifier_\w+|summary_\w+|model_type|is_llama_config"
    r"|gradient_checkpointing|_attn_implementation\w*|attn_implementation|unsloth\w*|pruned_heads|mask_(time|feature)\w*|num_beams|max_length"
)
#: settings that older versions of transformers wrote, with the value that there is no other of today
_NAMED_ONCE = (("position_embedding_type", "absolute"),)
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


def require_right(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse, with what is missing, a configuration that does not come out as transformers computes it.

    Free for what was swept; a few seconds, in a process of its own, for another one that is met for the first time.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if is_swept(config):
        return
    verdict = _verdict(str(folder), trust_remote_code, _fingerprint(config))
    if not verdict["is_right"]:
        name = class_of(config)
        raise ColdpressError(
            f"{name} with the settings of this config.json cannot be pressed: {verdict['why']}",
            hint=verdict["hint"]
            or "a tiny model of the same settings was pressed and compared with transformers; "
            "docs/architectures.md says what presses",
        )


def class_of(config: Mapping[str, Any]) -> str:
    """The class of transformers that a configuration is of; its model type where it does not say."""
    return str((config.get("architectures") or [config.get("model_type", "?")])[0])


def key_of(config: Mapping[str, Any]) -> str:
    """The name of a configuration's entry in the table: several model types may share a class."""
    return f"{config.get('model_type')}/{class_of(config)}"


def is_swept(config: Mapping[str, Any]) -> bool:
    """Whether each setting of a configuration is one that its class came out right with, by the mobius that is
    installed."""
    table = swept()
    known = table["classes"].get(key_of(config), {}).get("right")
    if known is None or table["mobius"] != version("mobius-onnx"):
        return False
    return all(kind in known.get(name, ()) for name, kind in settings_of(config))


@cache
def swept() -> dict[str, Any]:
    """The table: ``mobius``, its version, and ``classes``: model type/class -> ``right``: setting -> kinds of values;
    ``refused``; ``why``."""
    table: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table


def settings_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a configuration that have an effect, each with the kind of its value; sizes are of one kind."""
    heads = next((config[name] for name in _HEADS if isinstance(config.get(name), int)), None)
    for name, value in config.items():
        if _WITHOUT_EFFECT.fullmatch(name) or (name, value) in _NAMED_ONCE:
            continue
        if name in ("rope_scaling", "rope_parameters", "rope_theta") or isinstance(value, dict):
            yield from _rotation(f"{prefix}{name}", value)
        elif name.endswith(("num_key_value_heads", "num_kv_heads")) and isinstance(value, int):
            yield prefix + name, "one" if value == 1 else "all" if value == heads else "some"
        elif name == "max_window_layers":  # a count of layers, of which a tiny model has few
            yield prefix + name, "a number"
        else:
            yield prefix + name, _kind(value)


def _rotation(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested settings one by one; how positions are rotated under the same names, however it is told."""
    if value is None:
        return
    name = re.sub(r"rope_(scaling|theta|parameters)$", "rope", name)
    if not isinstance(value, dict):
        yield f"{name}.rope_theta", _kind(value)
        return
    for key, part in value.items():
        if isinstance(part, dict):
            yield from _rotation(f"{name}.{key}", part)
        elif not _WITHOUT_EFFECT.fullmatch(str(key)):
            yield f"{name}.{'rope_type' if key == 'type' else key}", _kind(part)


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(int(value)) if value in (0, 1) else "below 0" if value < 0 else "a number"
    if isinstance(value, list | tuple):
        if value and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
            return "[a number]"
        return "[" + ", ".join(sorted({_kind(one) for one in value})) + "]"
    return json.dumps(value, sort_keys=True, default=str)


def _fingerprint(config: Mapping[str, Any]) -> str:
    facts = [_VERSION, [version(name) for name in _NEEDS], class_of(config), sorted(config.items(), key=str)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _verdict(folder: str, trust_remote_code: bool, fingerprint: str) -> dict[str, Any]:
    """The verdict of a trial, tried now or on another day.

    Verdicts by the code of a folder are not kept: it may change.
    """
    with Store().kept(f"trial-{fingerprint}") as place:
        file = place / "verdict.json"
        if file.exists() and not trust_remote_code:
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return known
        verdict = _try(folder, trust_remote_code)
        staged = file.with_suffix(".new")
        staged.write_text(json.dumps(verdict), encoding="utf-8")
        os.replace(staged, file)
        return verdict


def _try(folder: str, trust_remote_code: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="coldpress-") as place:
        question = Path(place) / "request.json"
        question.write_text(json.dumps({"folder": folder, "trust_remote_code": trust_remote_code}), encoding="utf-8")
        command = [sys.executable, "-m", "coldpress.graphs.trial", str(question)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment.of_child(), check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = "\n  ".join(done.stderr.strip().splitlines()[-12:])
        raise ColdpressError(f"trying the architecture failed:\n  {last}", exit_code=WORK_FAILED) from None
    return answer
