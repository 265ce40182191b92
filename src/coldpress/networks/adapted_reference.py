"""PEFT's network as the truth for a merged model: the base with the adapter live in it, weights streamed as for
`Reference`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from coldpress.models.peft import acts_on_whole, read_config
from coldpress.networks.adapted import Adapted, is_empty, resize
from coldpress.networks.empty import tied_names
from coldpress.networks.reference import Reference


class AdaptedReference(Reference):
    """A Hugging Face folder with the adapter of a PEFT folder, of any kind that can be merged."""

    def __init__(self, folder: Path, adapter: Path, trust_remote_code: bool = False):
        self._live = adapter
        super().__init__(folder, trust_remote_code)

    def _stream(self, stored: Mapping[str, str]) -> None:
        if acts_on_whole(read_config(self._live)):
            self._load_whole()
        else:
            super()._stream(stored)

    def _modules(self) -> Iterator[tuple[str, Any, Any]]:
        adapted = Adapted(self._model, self._live, tied_names(self._model))
        for name, module, around in list(adapted.base_modules()):
            for local, parameter in module._parameters.items():
                if parameter is not None and is_empty(parameter):  # what nobody fills shall not pass for zeros
                    module._parameters[local] = nn.Parameter(parameter.to("meta"), requires_grad=False)
            yield name, module, None if around is module else around

    def _put_adapter(self) -> None:
        from peft import PeftModel

        resize(self._model, self._live)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = PeftModel.from_pretrained(self._model, str(self._live)).get_base_model().eval()
