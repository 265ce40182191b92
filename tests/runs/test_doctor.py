from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coldpress.runs import doctor
from coldpress.runs.doctor import (
    Finding,
    examine,
    flavours,
    hub,
    installed,
    instruction_sets,
    requirements,
    trouble,
    worst,
)


def install(folder: Path, name: str, version: str, *files: str, requires: tuple[str, ...] = ()) -> None:
    """A distribution as pip leaves it: metadata and a list of files."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An otherwise empty environment to install into."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_examine_looks_at_everything(tmp_path):
    findings = examine(tmp_path / "not" / "made")
    assert {
        "Python",
        "Cores",
        "Processor",
        "Memory",
        "Disk",
        "Libraries",
        "Execution providers",
        "Requirements",
        "Hub",
    } <= {finding.name for finding in findings}
    assert all(finding.state in ("ok", "warn", "bad") for finding in findings)
    assert all(finding.advice for finding in findings if finding.state != "ok")
    assert not (tmp_path / "not").exists()


def test_libraries_without_metadata_or_versions_do_not_stop_it(site):
    (site / "broken-1.0.dist-info").mkdir()
    install(site, "numpy", "not a version")
    findings = [*requirements(installed()), *flavours(installed()), *trouble(installed())]
    assert worst(findings) == "bad" and "numpy" in installed()


def test_examine_imports_no_torch():
    code = "import sys; from coldpress.runs.doctor import examine; examine(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_examine_survives_missing_system_files(monkeypatch, tmp_path):
    def missing(self, *args, **kwargs):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    unknown = [finding.value for finding in examine(tmp_path) if finding.name == "Processor"]
    assert sys.platform == "darwin" or unknown == ["instruction sets unknown"]


def test_worst():
    assert worst([]) == "ok"
    assert worst([Finding("a", "", "warn"), Finding("b", "")]) == "warn"
    assert worst([Finding("a", "", "bad"), Finding("b", "", "warn")]) == "bad"


def test_instruction_sets_of_both_families():
    intel = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert instruction_sets(intel) == ["AVX2", "AVX-512", "AVX512-VNNI", "AMX-int8"]
    assert instruction_sets("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n") == ["NEON", "dot product", "i8mm"]
    assert instruction_sets("") == []


def test_two_flavours_overwrite_each_other(site):
    install(site, "onnxruntime", "1.31.1", "onnxruntime/__init__.py")
    install(site, "onnxruntime-gpu", "1.31.1", "onnxruntime/__init__.py")
    install(site, "onnxruntime-extensions", "0.14.0", "onnxruntime_extensions/__init__.py")
    (found,) = flavours(installed())
    assert found.state == "bad" and "extensions" not in found.value
    assert "pip uninstall -y" in found.advice and "pip install onnxruntime-gpu" in found.advice


def test_one_flavour_and_its_companions_are_fine(site):
    install(site, "onnxruntime_gpu", "1.31.1", "onnxruntime/__init__.py")
    install(site, "onnxruntime-genai-cuda", "0.18.0", "onnxruntime_genai/__init__.py")
    assert flavours(installed()) == []


def test_another_flavour_meets_a_requirement(site):
    install(site, "coldpress", "0.1.0", requires=("onnxruntime>=1.22", "numpy>=1.26", "peft; extra == 'finetune'"))
    install(site, "onnxruntime-gpu", "1.31.1", "onnxruntime/__init__.py")
    install(site, "numpy", "1.21.0", "numpy/__init__.py")
    (found,) = requirements(installed())
    assert found.state == "bad"
    wanted = found.advice.removeprefix("pip install ").replace("'", "").split()
    assert "numpy>=1.26" in wanted and "torch" in wanted
    assert not [need for need in wanted if need.startswith("peft") or need in ("onnxruntime", "onnxruntime>=1.22")]


def test_requirements_of_the_libraries_count(site):
    for name in doctor._CORE:
        install(site, name, "2.0", f"{name.replace('-', '_')}/__init__.py")
    assert requirements(installed())[0].state == "warn"  # coldpress itself is not installed here
    install(site, "coldpress", "0.1.0", requires=("numpy>=1",))
    assert requirements(installed())[0].state == "ok"
    (site / "transformers-2.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 2.0\nRequires-Dist: tokenizers<2\n"
    )
    (found,) = requirements(installed())
    assert found.state == "bad" and found.advice == "pip install 'tokenizers<2'"


@pytest.mark.parametrize(
    ("here", "state"),
    [
        ({"transformers": "4.57.6"}, "warn"),
        ({"transformers": "5.23.0"}, None),
        ({"olive-ai": "0.13.0"}, "warn"),
        ({"onnxruntime": "1.17.1", "numpy": "2.2.6"}, "bad"),
        ({"onnxruntime": "1.31.1", "numpy": "1.26.4"}, None),
        ({"onnxruntime": "a build", "numpy": "2.2.6"}, None),
        ({"autoawq": "0.2.9", "transformers": "4.57.1", "peft": "0.17.1"}, "warn"),
    ],
)
def test_known_trouble(here, state):
    found = trouble(here)
    assert worst(found) == (state or "ok")
    assert all(finding.advice and finding.value for finding in found)


def test_the_token_is_never_shown():
    secret = "hf_" + "x" * 12
    findings = hub({"HF_TOKEN": secret, "HF_HUB_OFFLINE": "1"})
    assert secret not in repr(findings)
    assert worst(findings) == "warn" and any(finding.value == "set" for finding in findings)
    assert worst(hub({})) == "ok"
