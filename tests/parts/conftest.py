"""The sources and, made once where they are asked for, the results of passes that other parts work on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coldpress import api, parts
from coldpress.models.model import Model, content_key
from coldpress.parts import Context
from tests.end_to_end.every_pass import PASSES, placed
from tests.parts.examples import format_of
from tests.sources import write_data, write_sources

Named = Callable[[str], Model]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sources(tmp_path_factory.mktemp("sources"))
    return write_data(folder)


def contents(place: Path) -> dict[str, bytes]:
    """All files of a model by their names below it."""
    if place.is_file():
        return {place.name: place.read_bytes()}
    return {str(file.relative_to(place)): file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}


def do(name: str, model: Model, sources: Path, scratch: Path) -> Model:
    """Check and do an example of a pass."""
    what, _, parameters = PASSES[name]
    workflow = api.pass_workflow(what, model.path, None, **placed(parameters, sources))
    [step] = workflow.passes
    parts.check_needs(type(step.make()))
    step.check(model, workflow.target)
    return step.make().run(model, Context(scratch, workflow.target))


@pytest.fixture(scope="session")
def named(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Named:
    """A model by the name of a source or of an example of a pass."""
    made: dict[str, Model] = {}

    def find(name: str) -> Model:
        if name not in made:
            if name in PASSES and not (sources / name).exists():
                found = do(name, find(PASSES[name][1]), sources, tmp_path_factory.mktemp(name))
                made[name] = Model(found.path, found.format, name, found.provenance)
            else:
                made[name] = Model(sources / name, format_of(name), content_key(sources / name))
        return made[name]

    return find
