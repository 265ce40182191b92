"""What every kind of data promises, for a model of each format that it accepts."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from coldpress.cli import main
from coldpress.errors import ColdpressError
from coldpress.parts import Context, DataSource
from tests.end_to_end.every_pass import placed
from tests.parts.conftest import contents
from tests.parts.examples import DATA, REFUSED_DATA


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, forms in DATA.items() for form in forms])
def test_batches_are_the_same_each_time_and_full(kind, form, named, sources, tmp_path):
    model, parameters = DATA[kind][form]
    found = named(model)
    found = type(found)(found.path, form, found.key)
    before = contents(found.path)
    source = DataSource(kind, placed(parameters, sources))
    source.make().check(found)
    one, two = (list(source.batches(found, Context(tmp_path))) for _ in range(2))
    assert one and len(one) == len(two)
    for batch, again in zip(one, two, strict=True):
        assert batch.size > 0 and batch.inputs.keys() == again.inputs.keys()
        for name, array in batch.inputs.items():
            assert len(array) == batch.size
            assert np.array_equal(array, again.inputs[name]), name
        if batch.labels is not None:
            assert len(batch.labels) == batch.size and np.array_equal(batch.labels, again.labels)
    assert contents(found.path) == before


@pytest.mark.parametrize("kind", sorted(REFUSED_DATA))
def test_data_that_cannot_be_ends_with_exit_code_2(kind, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.yaml").write_text(
        yaml.safe_dump({"data": {"d": {"type": kind, "parameters": dict(REFUSED_DATA[kind])}},
                        "metrics": [{"type": "latency", "parameters": {"data": "d"}}]})
    )  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(sources / "dense"), "--config", "metrics.yaml"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert "error: " in said and "Traceback" not in said


def test_a_model_of_another_format_is_refused(sources, named, tmp_path):
    with pytest.raises(ColdpressError, match="is not for gguf models"):
        next(
            DataSource("text_corpus", {"data_files": [str(sources / "text.txt")]}).batches(
                named("tiny.gguf"), Context(tmp_path)
            )
        )
