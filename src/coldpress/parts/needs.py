"""Whether what a part needs is installed, and what to type where it is not."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from coldpress.errors import ColdpressError

#: ONNX Runtime comes in flavours that bring the same package (docs/decisions/): each stands for the one it is made of
FLAVOURS = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn"),
    "onnxruntime-genai": ("onnxruntime-genai-cuda", "onnxruntime-genai-directml"),
}
#: extras that bring more than what is missing
_BROAD = ("all", "dev", "quickstart")


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, or of a flavour that stands for it; None where none is installed."""
    for name in (distribution, *FLAVOURS.get(distribution, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_needs(part: type[Any]) -> None:
    """Raise ColdpressError for the first distribution that a part needs and that is not installed."""
    check_installed(part.__name__, *part.needs)


def check_installed(name: str, *distributions: str) -> None:
    """Raise ColdpressError for the first distribution that what is called so needs and that is not installed."""
    for distribution in distributions:
        if installed_version(distribution) is None:
            raise ColdpressError(f"{name} needs {distribution}, which is not installed", hint=installing(distribution))


def installing(distribution: str) -> str:
    """The command that installs what is missing: with one of our extras, where one has it."""
    try:
        wanted = requires("coldpress") or []
    except PackageNotFoundError:
        wanted = []
    pattern = re.compile(rf"{re.escape(distribution)}(?![\w.-]).*;\s*extra\s*==\s*['\"]([\w-]+)")
    extras = [match[1] for one in wanted if (match := pattern.match(one))]
    extra = next((name for name in extras if name not in _BROAD), None)
    return f"pip install 'coldpress[{extra}]'" if extra else f"pip install {distribution}"


def required() -> list[str]:
    """What coldpress itself needs, without its extras, as pip takes it."""
    try:
        wanted = requires("coldpress") or []
    except PackageNotFoundError:
        return []
    return [one for one in wanted if not re.search(r";.*\bextra\s*==", one)]
