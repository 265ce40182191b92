"""Put adapters onto a model: the result is the base with its adapters, ready to be pressed with slots for them, or to
be merged.

An adapter is a PEFT folder of any kind; which kinds slots can hold, and which can be merged, the pass that follows
says. Its name is that of the folder, or of the one around it if the folder is called ``adapter``. The base stays as it
is, quantized or not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from coldpress.errors import ColdpressError, NotAtHand
from coldpress.models import adapter_folder
from coldpress.models.model import Model
from coldpress.models.planned import Planned, settings_of, weights_of
from coldpress.parts import Context, Pass, option
from coldpress.target import Target


@dataclass(frozen=True)
class AttachAdapters(Pass):
    accepts = ("hf",)
    produces = "adapter"
    reads = ("adapter_path",)

    adapter_path: tuple[str, ...] = option("PEFT folders, one for each adapter", ())

    def check(self, model: Model | Planned, target: Target) -> None:
        from coldpress.models.peft import read_config

        if not self.adapter_path:
            raise ColdpressError("no adapter was named", hint="pass PEFT folders in adapter_path")
        for folder in self._folders().values():
            read_config(folder)

    def foretold(self, model: Model | Planned) -> Planned:
        return Planned("adapter", model.provenance, settings_of(model), weights_of(model), self._folders())

    def run(self, model: Model, ctx: Context) -> Model:
        folders = self._folders()
        adapter_folder.write(ctx.scratch, model.path, folders)
        names = tuple(folders) if len(folders) == 1 else tuple(sorted(folders))
        return Model(ctx.scratch, "adapter", "", replace(model.provenance, attached=names))

    def _folders(self) -> dict[str, Path]:
        """PEFT folders by the name of their adapter; ColdpressError for one that does not exist."""
        paths = [Path(path).expanduser() for path in self.adapter_path]
        for path in paths:
            if not path.is_dir():
                raise NotAtHand(f"adapter_path: '{path}' is no folder", hint="pass PEFT folders")
        return adapter_folder.named(paths)
