"""Puts the library that draws charts into a wheel, so that whoever installs it needs nothing to make it with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_LIBRARY = Path("src/coldpress/report/library.py")


class Library(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        spec = importlib.util.spec_from_file_location("library", Path(self.root) / _LIBRARY)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.make()
        build_data["artifacts"].append(str(_LIBRARY.with_name(module.FILE.name)))
