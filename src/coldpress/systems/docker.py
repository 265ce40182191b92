"""A Docker container on this machine. Requests are read and checked; they run there later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coldpress.jobs.system import System
from coldpress.parts import option


@dataclass(frozen=True)
class Docker(System):
    """An image, built or at hand, and how containers of it are started."""

    title: ClassVar[str] = "Docker"
    is_ready: ClassVar[bool] = False

    image: str = option("name of the image", "coldpress:latest")
    dockerfile: str | None = option("Dockerfile it is built from", None)
    build_context: str | None = option("folder with the Dockerfile", None)
    build_arguments: dict[str, Any] = option("arguments of the build", dict)
    run_arguments: dict[str, Any] = option("arguments of docker run", dict)
    work_dir: str = option("folder in the container where jobs work", "/coldpress")
    requirements_file: str | None = option("file with further packages to install", None)
    keep_image: bool = option("leave an image that was built for the run", False)
    hf_token: bool = option("give jobs the hub's token", False)
