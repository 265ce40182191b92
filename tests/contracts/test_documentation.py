"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from coldpress.cli import VERBS, app

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_architectures_is_that_of_the_table():
    sweep = script("sweep")
    table = json.loads(sweep.TABLE.read_text(encoding="utf-8"))
    assert sweep.page(table) == sweep.PAGE.read_text(encoding="utf-8"), "run: python docs/sweep.py"


def test_the_reference_is_up_to_date():
    generate = script("generate")
    assert generate.page() == generate.PAGE.read_text(encoding="utf-8"), "run: python docs/generate.py"
    assert generate.olive_page() == generate.OLIVE_PAGE.read_text(encoding="utf-8"), "run: python docs/generate.py"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_exists_and_helps(name):
    command = app.get_command(None, name)
    assert command.name == name
    assert command.help == VERBS[name]
    for parameter in command.params:
        assert parameter.param_type_name == "argument" or parameter.help, (name, parameter.name)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md")),
        "benchmarks/README.md",
        "examples/travel/README.md",
        "examples/emotion/README.md",
    ],
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith(("http", "mailto")):
            assert ((ROOT / page).parent / target).exists(), target


def test_files_that_the_design_names_exist():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_]+(?:/[a-z_]*)*(?:\.py|/))`", text):
        places = (ROOT / name, ROOT / "src/coldpress" / name)
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_workflows_in_the_documentation_are_read(page):
    import yaml

    from coldpress.workflow.file import load_workflow

    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert load_workflow(yaml.safe_load(block)).model
