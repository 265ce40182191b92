"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from coldpress import parts
from coldpress.cli import VERBS, app

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
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


def test_the_page_of_components_names_all_of_them_and_each_is_compared_with_something():
    components = script("components")
    known = [(kind, name) for kind in parts.KINDS for name in parts.names(kind)]
    named = re.findall(r"^\| (\w+) \| `(\w+)` \|", components.PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert named == known, "run: python docs/generate.py"
    weak = [one for one in known if components.LEVELS.index(components.level_of(*one)[0]) < 2]
    assert len(known) >= 80 and not weak


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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


def typed(page):
    """The commands of ours in the blocks of a page, as words, without comments; behind prompts where there are any."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for block in re.findall(r"```(?:console|bash)\n(.*?)```", text, flags=re.DOTALL):
        lines = block.splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [line for line in prompted or lines if line.startswith(("coldpress ", "olive "))]
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_printed_as_they_are_typed(page):
    for words in typed(page):
        assert not any(word.endswith("...") or "\n..." in word for word in words), words
        verb, rest = app, words[1 : words.index(">") if ">" in words else None]
        while isinstance(verb, click.Group) and rest:
            verb, rest = verb.get_command(click.Context(verb), rest[0]), rest[1:]
        assert verb is not None, words
        if not isinstance(verb, click.Group):
            verb.make_context(words[1], list(rest))
