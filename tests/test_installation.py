"""What the extras bring, and what a wheel says; in full, that they can be installed and the documentation built."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from coldpress.parts.needs import FLAVOURS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FLAVOURED = {name: family for family, others in FLAVOURS.items() for name in (family, *others)}


def brought_by(*extras: str) -> set[str]:
    """The distributions that ``coldpress[extras]`` names, those of extras within them too."""
    found = set()
    for requirement in [*PROJECT["dependencies"], *(one for extra in extras for one in EXTRAS[extra])]:
        name = re.match(r"[\w.-]+", requirement)[0]
        inner = re.match(r"coldpress\[([\w,-]+)\]", requirement)
        found |= brought_by(*inner[1].split(",")) if inner else {name}
    return found


@pytest.mark.parametrize("extras", [(), *((one,) for one in EXTRAS), ("gpu", "auto-opt", "finetune", "data", "eval")])
def test_no_installation_brings_two_flavours_of_a_runtime(extras):
    for family in FLAVOURS:
        assert len([name for name in brought_by(*extras) if FLAVOURED.get(name) == family]) <= 1


def test_the_extras_are_those_of_the_documents_and_each_device_has_its_runtime():
    assert {"cpu", "gpu", "directml", "azureml", "auto-opt", "all", "finetune"} <= set(EXTRAS)
    for extra in ("cpu", "gpu", "directml", "all", "quickstart"):
        assert {FLAVOURED[name] for name in brought_by(extra) if name in FLAVOURED} == set(FLAVOURS), extra
    assert not {name for name in brought_by("auto-opt") if name in FLAVOURED}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.full
def test_the_wheels_page_has_links_that_lead_somewhere_from_anywhere(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        page = email.message_from_bytes(archive.read(name))
    links = re.findall(r"\]\(([^)]+)\)", page.get_payload())
    assert len(links) > 10 and all(link.startswith(("https://", "#")) for link in links)
    for link in links:
        if "/blob/main/" in link:
            assert (ROOT / link.partition("/blob/main/")[2].partition("#")[0]).exists(), link
    assert {"Homepage", "Issues"} <= {url.partition(",")[0] for url in page.get_all("Project-URL")}


@pytest.mark.full
def test_the_wheel_brings_the_library_that_draws_charts(wheel):
    """Whoever installs it has nothing to make it with."""
    with zipfile.ZipFile(wheel) as archive:
        code = archive.read("coldpress/report/vega.js").decode()
    assert "window.vegaEmbed" in code and "Redistributions in binary form" in code


@pytest.mark.full
@pytest.mark.parametrize("extra", ["cpu", "gpu", "directml", "auto-opt", "azureml", "finetune", "data", "eval", "all"])
def test_an_extra_can_be_resolved(extra, wheel):
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", f"{wheel}[{extra}]"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_the_documentation_is_built_without_a_warning(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    own = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    subprocess.run([own / "python", "-m", "pip", "install", "--quiet", *EXTRAS["docs"]], check=True)
    build = [own / "python", "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/python/index.html").read_text(encoding="utf-8")
    assert "block_size" in page and "ColdpressError" in page
