"""Whether this machine and this Python can do the work, and the command that repairs what cannot.

Looks, never changes. Heavy libraries are not imported, except ONNX Runtime, which alone knows its providers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from coldpress.target import available_providers, physical_cores

OK, WARN, BAD = "ok", "warn", "bad"
_ORDER = (OK, WARN, BAD)

_CORE = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "mobius-onnx", "onnxruntime", "onnxruntime-genai",
         "numpy", "safetensors", "tokenizers", "huggingface-hub")  # fmt: skip
_FAMILIES = ("onnxruntime", "onnxruntime-genai")
_NIGHTLY = "ort-nightly"

#: instruction set -> the flag that /proc/cpuinfo (x86: flags, Arm: Features) or sysctl shows for it
_X86 = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-VNNI": "avx_vnni", "AVX512-VNNI": "avx512_vnni",
        "AMX-int8": "amx_int8"}  # fmt: skip
_ARM = {"NEON": "asimd", "dot product": "asimddp", "i8mm": "i8mm", "SVE": "sve"}
_APPLE = {"NEON": "neon", "dot product": "feat_dotprod", "i8mm": "feat_i8mm"}
_APPLE_KEYS = ("hw.optional.neon", "hw.optional.arm.FEAT_DotProd", "hw.optional.arm.FEAT_I8MM")
_MIN_FREE_BYTES, _MIN_MEMORY_BYTES = 5e9, 2e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``state`` is ``ok``, ``warn`` or ``bad``; ``advice`` says what to do unless it is ok."""

    name: str
    value: str
    state: str = OK
    advice: str | None = None


@dataclass(frozen=True)
class Trouble:
    """Versions that are known not to work together although their own requirements allow it.

    ``versions`` maps distributions to specifiers; all must hold. ``state``: what it means for coldpress.
    """

    versions: Mapping[str, str]
    state: str
    effect: str
    repair: str


KNOWN_TROUBLE = (
    # Seen with 4.57.6: rope_theta fell back to 10000 without a word; SmolLM2's perplexity went from 19.08 to 20.41.
    Trouble({"transformers": "<5"}, WARN, "model folders saved by transformers 5 lose their rope_theta in silence",
            "pip install -U 'transformers>=5'"),
    # Both install the command `olive`; whichever was installed last owns it.
    Trouble({"olive-ai": ">=0"}, WARN, "olive-ai installs the command `olive` too; the one installed last wins",
            "type `coldpress` instead of `olive`, or keep olive-ai in its own environment"),
    # Seen with 1.17.3 and 1.18.1 (ImportError); 1.19.2 works. github.com/microsoft/onnxruntime/issues/21063
    Trouble({"onnxruntime": "<1.19", "numpy": ">=2"}, BAD, "onnxruntime before 1.19 cannot be imported with numpy 2",
            "pip install -U onnxruntime"),
    # github.com/huggingface/peft/issues/2827: PEFT imports awq where it finds it, and awq needs a name that is gone.
    Trouble({"autoawq": ">=0", "transformers": ">=4.57", "peft": "<=0.17.1"}, WARN,
            "PEFT imports autoawq, which fails with this transformers", "pip uninstall -y autoawq"),
)  # fmt: skip


def examine(cache: Path | None = None) -> list[Finding]:
    """Everything worth knowing before the first run.

    ``cache``: the folder of finished results, if not the usual one.
    """
    here = installed()
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _python, _cores, _processor, _memory, lambda: _disk(cache), lambda: versions(here), lambda: flavours(here),
        _providers, lambda: trouble(here), lambda: requirements(here), lambda: hub(os.environ),
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def worst(findings: Iterable[Finding]) -> str:
    """The worst state among findings: ``ok``, ``warn`` or ``bad``."""
    return max((finding.state for finding in findings), key=_ORDER.index, default=OK)


def installed() -> dict[str, str]:
    """Every distribution of this Python: normalized name -> version. Broken ones, without a name, are left out."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        described = distribution.metadata
        name = described["Name"] if described is not None else None
        if name:
            found.setdefault(_normal(name), described["Version"] or "unknown")
    return found


def instruction_sets(cpuinfo: str) -> list[str]:
    """The instruction sets that speed up quantized matrix products, from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            return [name for name, flag in (_X86 if key.strip() == "flags" else _ARM).items() if flag in flags]
    return []


def versions(here: Mapping[str, str]) -> list[Finding]:
    """The versions of the libraries that do the work; those that are missing are reported by ``requirements``."""
    known = [(name, here[name]) for name in _CORE if name in here]
    return [Finding("Libraries", ", ".join(f"{name} {version}" for name, version in known) or "none found")]


def flavours(here: Mapping[str, str]) -> list[Finding]:
    """ONNX Runtime comes in flavours that all write the same folder: two at once overwrite each other."""
    findings = []
    for family in _FAMILIES:
        rivals = [name for name in here if name in _flavours_of(family, here)]
        if len(rivals) < 2:
            continue
        kept = next((name for name in rivals if name != family), family)
        repair = f"pip uninstall -y {' '.join(rivals)} && pip install {kept}"
        value = ", ".join(f"{name} {here[name]}" for name in rivals)
        findings.append(
            Finding(family, f"{value}: they overwrite each other", BAD, f"{repair} (or the one you want; only one)")
        )
    return findings


def trouble(here: Mapping[str, str], known: Iterable[Trouble] = KNOWN_TROUBLE) -> list[Finding]:
    """The rows of ``KNOWN_TROUBLE`` that hold for these distributions."""
    findings = []
    for row in known:
        if all(name in here and _within(here[name], wanted) for name, wanted in row.versions.items()):
            names = " with ".join(f"{name} {here[name]}" for name in row.versions)
            findings.append(Finding(names, row.effect, row.state, row.repair))
    return findings


def requirements(here: Mapping[str, str], distribution: str = "coldpress") -> list[Finding]:
    """What coldpress and its core libraries require and do not find, as ``pip check`` would say it."""
    owners = [name for name in (distribution, *_CORE) if name in here]
    unmet = list(dict.fromkeys(need for owner in owners for need in _unmet(owner, here)))
    named = {_named(need) for need in unmet}
    missing = [*unmet, *(name for name in _CORE if name not in named and not _answering(name, here))]
    if missing:
        wanted = " ".join(f"'{need}'" for need in missing)
        value = f"missing or of another version: {', '.join(missing)}"
        return [Finding("Requirements", value, BAD, f"pip install {wanted}")]
    if distribution in here:
        return [Finding("Requirements", "all found")]
    advice = f"pip install {distribution}, or pip install -e . in its source folder"
    return [Finding("Requirements", f"{distribution} runs from a folder; its own were not checked", WARN, advice)]


def hub(environment: Mapping[str, str]) -> list[Finding]:
    """Whether models can be fetched. A token is never shown."""
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    token = any(environment.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    access = Finding("Hub token", "set" if token else "not set in the environment; gated models need one")
    if not offline:
        return [Finding("Hub", "online"), access]
    return [Finding("Hub", "switched off by HF_HUB_OFFLINE", WARN, "unset HF_HUB_OFFLINE to download models"), access]


def _python() -> list[Finding]:
    value = f"{platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    if sys.maxsize <= 2**32:
        return [Finding("Python", f"{value}, 32 bits", BAD, "install a 64-bit Python")]
    return [Finding("Python", value)]


def _cores() -> list[Finding]:
    usable, physical, quota = physical_cores(), _counted_cores(), _cpu_quota()
    value = f"{usable} usable" + (f", {physical} physical" if physical else "")
    if quota is not None and quota < usable:
        few = max(1, int(quota))
        return [Finding("Cores", f"{value}, but this container may use {quota:g}", WARN, f"set the threads to {few}")]
    return [Finding("Cores", value)]


def _processor() -> list[Finding]:
    found = _apple_sets() if sys.platform == "darwin" else instruction_sets(_text(Path("/proc/cpuinfo")))
    intel = platform.machine().lower() in ("x86_64", "amd64")
    if found and intel and "AVX2" not in found:
        advice = "expect int4 models to be slow here; another machine will show their real speed"
        return [Finding("Processor", f"no AVX2; {', '.join(found)}", WARN, advice)]
    return [Finding("Processor", ", ".join(found) or "instruction sets unknown")]


def _memory() -> list[Finding]:
    try:
        import psutil
    except ImportError:
        return [Finding("Memory", "unknown: psutil is not installed", WARN, "pip install psutil")]
    seen = psutil.virtual_memory()
    limit = _number(_text(Path("/sys/fs/cgroup/memory.max")))
    value = f"{seen.available / 1e9:.1f} GB available of {seen.total / 1e9:.1f} GB"
    if limit is not None and limit < seen.total:
        value += f", this container may use {limit / 1e9:.1f} GB"
    if min(seen.available, limit or seen.available) < _MIN_MEMORY_BYTES:
        return [Finding("Memory", value, WARN, "close other programs, or press smaller models")]
    return [Finding("Memory", value)]


def _disk(cache: Path | None) -> list[Finding]:
    try:
        folder = cache or _cache_folder()
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
    except (ImportError, OSError, RuntimeError, StopIteration) as error:
        return [Finding("Disk", f"unknown: {error}", WARN, "set COLDPRESS_CACHE to a folder that can be written")]
    value = f"{free / 1e9:.1f} GB free for {folder}"
    if not os.access(there, os.W_OK):
        return [Finding("Disk", f"{folder} cannot be written", BAD, "set COLDPRESS_CACHE to a folder that can")]
    if free < _MIN_FREE_BYTES:
        return [Finding("Disk", value, WARN, "free some space, or set COLDPRESS_CACHE to a folder on a larger disk")]
    return [Finding("Disk", value)]


def _providers() -> list[Finding]:
    repair = "pip install --force-reinstall onnxruntime"
    try:
        found = available_providers()
    except (ImportError, AttributeError, OSError) as error:  # what a damaged or half-removed install raises
        return [Finding("Execution providers", f"ONNX Runtime does not start: {error}", BAD, repair)]
    if not found:
        return [Finding("Execution providers", "ONNX Runtime is not installed", BAD, "pip install onnxruntime")]
    return [Finding("Execution providers", ", ".join(found))]


def _cache_folder() -> Path:
    from coldpress.jobs.store import Store

    return Store().root


def _flavours_of(family: str, here: Mapping[str, str]) -> list[str]:
    """Installed distributions that write the family's folder: asked of their own file lists where they have one."""
    folder = f"{family.replace('-', '_')}/__init__.py"
    named = [name for name in here if name == family or name.startswith((f"{family}-", _NIGHTLY))]
    return [name for name in named if _writes(name, folder, default=name == family)]


def _writes(name: str, file: str, default: bool) -> bool:
    try:
        files = metadata.distribution(name).files
    except metadata.PackageNotFoundError:
        return default
    return default if files is None else any(str(entry).replace("\\", "/") == file for entry in files)


def _unmet(distribution: str, here: Mapping[str, str]) -> list[str]:
    """The requirements of one distribution that do not hold here; extras are not counted."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement

        stated = metadata.requires(distribution) or []
    except (ImportError, metadata.PackageNotFoundError):
        return []
    unmet = []
    for line in stated:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        versions_here = [here[name] for name in _answering(_normal(need.name), here)]
        if not any(need.specifier.contains(version, prereleases=True) for version in versions_here):
            unmet.append(f"{need.name}{need.specifier}")
    return unmet


def _answering(name: str, here: Mapping[str, str]) -> list[str]:
    """The installed distributions that stand for a name: onnxruntime-gpu is an onnxruntime."""
    return _flavours_of(name, here) if name in _FAMILIES else [name] if name in here else []


def _within(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return False
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _counted_cores() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    counted = psutil.cpu_count(logical=False)
    return int(counted) if counted else None


def _cpu_quota() -> float | None:
    """The processors that a control group (version 2) grants; None without a limit."""
    allowed, _, period = _text(Path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    quota, length = _number(allowed), _number(period)
    return quota / length if quota and length else None


def _apple_sets() -> list[str]:
    switched_on = []
    for key in _APPLE_KEYS:
        try:
            asked = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=1, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if asked.stdout.strip() == "1":
            switched_on.append(key.rpartition(".")[2].lower())
    return [name for name, flag in _APPLE.items() if flag in switched_on]


def _number(text: str) -> float | None:
    stripped = text.strip()
    return float(stripped) if stripped.isdecimal() else None


def _text(path: Path) -> str:
    """A small file of the system, or nothing where it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _named(requirement: str) -> str:
    """The distribution's name in a requirement."""
    return _normal(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
