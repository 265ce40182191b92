"""Folders changed at random: each is refused, found to be worse, or pressed to what transformers computes and to the
prompts it makes.

A seed gives a base, one or two mutations and their details. Twelve seeds run always, the others in the full run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import coldpress
from coldpress.api import optimize_workflow
from coldpress.errors import ColdpressError
from coldpress.graphs import building
from tests.fuzz import truth
from tests.fuzz.bases import BASES, FORMATS, write_base
from tests.fuzz.graph_server import GraphServer
from tests.fuzz.mutations import CHECKPOINT, PACKED, Mutation

ALWAYS, ALL = 5, 300
LENGTHS, STEPS = (3, 40), 3
CHATS = (
    [{"role": "user", "content": "Where is the sea?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " the tower, 1234 "},
        {"role": "assistant", "content": "there\n\nand here"},
        {"role": "user", "content": "when?"},
    ],
)
TEXTS = ("the sea", " the hill\n\n  and 5678", "It's <|end|> here", "café 你好 🙂", "a<extra>b sea")


def plan_of(seed: int) -> tuple[str, list[Mutation]]:
    """Bases and mutations take turns, so that a few seeds meet many of both."""
    random = Random(seed)
    base = BASES[seed % len(BASES)]
    pool = [*CHECKPOINT, *(PACKED * 3 if base in FORMATS else ())]
    return base, random.sample(pool, 2 if random.random() < 0.2 else 1)


def cases() -> Iterator[Any]:
    for seed in range(ALL):
        base, mutations = plan_of(seed)
        name = "-".join([str(seed), base, *(mutation.__name__ for mutation in mutations)])
        yield pytest.param(seed, id=name, marks=() if seed < ALWAYS else pytest.mark.full)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place, known = tmp_path_factory.mktemp("bases"), {}

    def written(name: str) -> Path:
        if name not in known:
            known[name] = write_base(name, place / name)
        return known[name]

    return written


@pytest.fixture(scope="module", autouse=True)
def graphs() -> Iterator[None]:
    """The worker's own module, in a fork instead of a process that imports everything anew."""
    server = GraphServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "subprocess", server)
        yield
    server.close()


@pytest.mark.parametrize("name", [BASES[0], *(pytest.param(name, marks=pytest.mark.full) for name in BASES[1:])])
def test_a_folder_as_it_was_is_right(name: str, base: Callable[[str], Path], tmp_path: Path):
    """So that what the others say means something."""
    assert difference_of(base(name), press(base(name), tmp_path, verified=False).model.path) is None


@pytest.mark.parametrize(("settings", "said"), [({"top_p": "x"}, "top_p 'x'"), ([], "no JSON object")])
def test_settings_of_generation_that_no_runtime_opens_are_refused(
    settings: Any, said: str, base: Callable[[str], Path], tmp_path: Path
):
    shutil.copytree(base("llama"), tmp_path / "folder")
    (tmp_path / "folder/generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ColdpressError, match=said):
        press(tmp_path / "folder", tmp_path, verified=False)


def test_a_scale_of_attention_that_the_graph_does_not_follow_is_refused(base: Callable[[str], Path], tmp_path: Path):
    shutil.copytree(base("gpt2"), tmp_path / "folder")
    config = json.loads((tmp_path / "folder/config.json").read_text())
    changed = {**config, "scale_attn_by_inverse_layer_idx": True}
    (tmp_path / "folder/config.json").write_text(json.dumps(changed))
    with pytest.raises(ColdpressError, match="scale_attn_by_inverse_layer_idx is True"):
        press(tmp_path / "folder", tmp_path, verified=False)


@pytest.mark.parametrize("seed", cases())
def test_a_changed_folder_is_refused_or_right(seed: int, base: Callable[[str], Path], tmp_path: Path):
    name, mutations = plan_of(seed)
    folder, random = tmp_path / "folder", Random(f"details of {seed}")
    shutil.copytree(base(name), folder)
    for mutation in mutations:
        with contextlib.suppress(ValueError, LookupError, OSError, StopIteration):  # of what an earlier one broke
            mutation(folder, random)
    try:
        pressed = press(folder, tmp_path, verified=False).model.path
    except ColdpressError as error:
        assert error.exit_code in (1, 2)
        for word in ("this is a bug", "Traceback", '.py", line'):
            assert word not in f"{error.message} {error.hint}"
        return
    difference = difference_of(folder, pressed)
    if difference is None:
        return
    try:
        report = press(folder, tmp_path, verified=True)
    except ColdpressError as error:
        assert error.exit_code in (1, 2)
        return
    assert report.exit_code == 3, f"silently different: {difference}"


def press(folder: Path, place: Path, verified: bool) -> coldpress.Report:
    """The folder in float32, codes exact, not measured; what was pressed before is found in the store."""
    config = folder / "config.json"
    exact = {"accuracy_level": 0} if config.is_file() and b"quant_method" in config.read_bytes() else {}
    output = place / f"out-{verified}"
    workflow = optimize_workflow(folder, output, precision="fp32", no_verify=not verified, **exact)
    return coldpress.run(replace(workflow, metrics=()), cache_dir=place / "cache")


def difference_of(folder: Path, pressed: Path) -> str | None:
    """What a pressed model does otherwise than transformers with the folder; None where that is nothing."""
    try:
        return _other_logits(truth.network(folder), pressed) or _other_prompts(truth.tokenizer(folder), pressed)
    except truth.NoTruthError as error:
        return f"transformers does not load it: {error}"
    except RuntimeError as error:
        return f"onnxruntime-genai does not open it: {error}"


def _other_logits(network: Any, pressed: Path) -> str | None:
    import onnxruntime_genai as og

    model = og.Model(str(pressed))
    for length in LENGTHS:
        ids = [int(number) for number in np.random.default_rng(length).integers(5, 250, length)]
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=length + STEPS + 1, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(np.array(ids, np.int32))
        for _ in range(STEPS):
            expected = truth.logits(network, ids)[-1]
            found = np.asarray(generator.get_logits()).reshape(-1)[-expected.size :]
            if found.shape != expected.shape:
                return f"{found.size} logits instead of {expected.size}"
            if not np.isfinite(expected).all():
                return "logits that are no numbers"
            if np.abs(found - expected).max() > 2e-4 * np.abs(expected).max():
                return (
                    f"logits differ by {np.abs(found - expected).max()} of {np.abs(expected).max()} after {len(ids)}"
                    " tokens"
                )
            ids.append(int(expected.argmax()))
            generator.append_tokens(np.array(ids[-1:], np.int32))
    return None


def _other_prompts(theirs: Any, pressed: Path) -> str | None:
    import onnxruntime_genai as og

    ours = og.Tokenizer(og.Model(str(pressed)))
    begins = not theirs.chat_template  # where there is one, it begins the text
    ours.update_options(add_special_tokens="true" if begins else "false")
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=begins).input_ids
        found = [int(token) for token in ours.encode(text)]
        if found != expected:
            return f"'{text}' is {found} instead of {expected}"
    if begins:
        return None
    for chat in CHATS:
        expected, found = _chat(theirs, ours, chat)
        if found != expected:
            return f"the chat {chat} is {found!r} instead of {expected!r}"
    return None


def _chat(theirs: Any, ours: Any, chat: list[dict[str, str]]) -> tuple[Any, Any]:
    """A chat as text and tokens by both; of a template that refuses it, that it does."""
    try:
        text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        expected: Any = (text, theirs(text, add_special_tokens=False).input_ids)
    except Exception:  # whatever a template raises
        expected = "refused"
    try:
        text = ours.apply_chat_template(json.dumps(chat), add_generation_prompt=True)
        return expected, (text, [int(token) for token in ours.encode(text)])
    except Exception:
        return expected, "refused"
