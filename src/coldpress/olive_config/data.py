"""``data_configs``: a list or a mapping, of components or of one bag of parameters, as sources of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress.olive_config.models import Source
from coldpress.olive_config.reading import Section


@dataclass(frozen=True)
class DataConfigs:
    sources: dict[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_data(root: Section, source: Source, client: Mapping[str, Any]) -> DataConfigs:
    root.take("data_configs")
    return DataConfigs()
