"""What every pass promises, on a small real model of each format that it accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldpress import api, parts
from coldpress.cli import main
from coldpress.models.provenance import Provenance
from coldpress.parts import schema
from tests.end_to_end.every_pass import PASSES, SAME_BYTES, placed
from tests.parts.conftest import contents, do
from tests.parts.examples import REFUSED_PASSES, format_of

#: the first example of each pass on each format, without those that take longest
SLOW = ("take_text_model", "press-adapters", "lora", *(name for name in PASSES if name.startswith("onnx_conversion")))
QUICK = {(what, format_of(model)): name for name, (what, model, _) in reversed(PASSES.items()) if name not in SLOW}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK.values() else pytest.mark.full) for name in PASSES]
)
def test_a_pass_keeps_its_promises(name, named, sources, tmp_path):
    what, model, parameters = PASSES[name]
    source = named(model)
    before = contents(source.path)
    workflow = api.pass_workflow(what, source.path, None, **placed(parameters, sources))
    foretold = workflow.passes[0].check(source, workflow.target)
    results = []
    for place in (tmp_path / "one", tmp_path / "elsewhere"):
        place.mkdir()
        results.append(do(name, source, sources, place))
    made, again = results
    assert made.format == foretold.format == parts.find("passes", what).produces
    assert contents(source.path) == before, "the source was changed"
    assert contents(made.path)
    assert made.path != source.path or what == "onnx_fastest"  # of a tiny graph perhaps nothing is faster
    if name in SAME_BYTES:
        assert contents(made.path) == contents(again.path)
    known = made.provenance
    assert schema.build(Provenance, json.loads(json.dumps(schema.plain(known)))) == known
    assert parts.find("passes", what)().foretold(source).format in (made.format, source.format)


@pytest.mark.parametrize("name", sorted(REFUSED_PASSES))
def test_a_request_that_cannot_be_ends_with_exit_code_2(name, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source, flags, words = REFUSED_PASSES[name]
    before = contents(sources / source)
    with pytest.raises(SystemExit) as stopped:
        main(["run-pass", name, "-m", str(sources / source), "-o", "out", *flags])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert words in said and "hint: " in said
    assert not Path("out").exists() and contents(sources / source) == before
