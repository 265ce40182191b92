"""What the libraries find in the environment of our processes and of all that these start; and what that says of us.

They read it once, when they are loaded, so it is made when the package is imported, before any of them. What the user
has set stays.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Nothing is reported: ONNX Runtime would keep a device id and a queue of events in the user's home and send them to
#: Microsoft, the hub's libraries would say in their requests what they are used from, Ray would tell of its clusters.
_SILENCE = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
#: Threads of OpenMP that wait sleep after some microseconds. By default they spin for milliseconds, and on a machine
#: that others use, too, they spin on the processor that the thread they wait for needs
#: (docs/decisions/0012-threads-that-wait.md).
_PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100"}
#: what else a user may have said of this
_USERS_PATIENCE = (*_PATIENCE, "KMP_BLOCKTIME")


def prepare() -> None:
    """Make the environment of this process, and so of its children."""
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in _USERS_PATIENCE):
        os.environ.update(_PATIENCE)


def as_for_an_app() -> None:
    """Let threads wait as in a program that knows nothing of us: what is timed in this process counts for such
    programs."""
    if all(os.environ.get(name) == value for name, value in _PATIENCE.items()):
        for name in _PATIENCE:
            del os.environ[name]


def of_child() -> dict[str, str]:
    """The environment of a Python process of ours: as here, and it finds this very package, installed or not."""
    from pathlib import Path

    own = str(Path(__file__).parents[1])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([own, known] if known else [own])}


#: how variables are called that hold secrets, and what holds them in addresses and connection strings
_SECRET_NAMES = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "CONNECTION_STRING", "_KEY")
_SECRET_VALUES = (
    r"(?i)([\w-]*(?:\bsig|signature|accountkey|sharedaccesskey|token|secret|password)(?:[\"']?\s*=\s*|[\"']\s*:\s*)[\"']?)"
    r"[^&;\s\"']+",
    r"(?i)(\b[\w-]*(?:secret|password):\s*)\S+",
    r"(?i)(\bbearer )\S+",
    r"(://[^/\s:@]*:)[^/\s@]+(?=@)",
)


def is_secret(name: str) -> bool:
    """Whether a variable is called as those that hold secrets are."""
    return any(part in name.upper() for part in _SECRET_NAMES)


def without_secrets(text: str) -> str:
    """Text for logs and errors, without the values of secret variables, and of what is called a secret in it."""
    import re

    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret(name):
            text = text.replace(value, "***")
    for pattern in _SECRET_VALUES:
        text = re.sub(pattern, r"\1***", text)
    return text


def package_alone() -> Path:
    """A folder with nothing but this package in it, for the path of another Python: it would find the packages beside
    this one, too, and take them for its own."""
    import hashlib
    import shutil
    from contextlib import suppress
    from pathlib import Path

    package = Path(__file__).resolve().parent
    folder = cache_folder() / "package" / hashlib.sha256(str(package).encode()).hexdigest()[:16]
    place = folder / package.name
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with suppress(FileExistsError):  # another process was faster
                place.symlink_to(package, target_is_directory=True)
        except OSError:  # Windows, without the right to make links
            shutil.copytree(package, place, dirs_exist_ok=True)
    return folder


def cache_folder() -> Path:
    """Where results and what is worth remembering lie: ``$COLDPRESS_CACHE``, or the user's cache folder."""
    from pathlib import Path

    if own := os.environ.get("COLDPRESS_CACHE"):
        return Path(own).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("coldpress", appauthor=False)


def shared_cache() -> str | None:
    """Where results lie that are shared with other machines: ``$COLDPRESS_SHARED_CACHE``."""
    return os.environ.get("COLDPRESS_SHARED_CACHE") or None
