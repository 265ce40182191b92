"""Which files of a Hugging Face folder hold its weights: those that transformers would load, and no others.

transformers takes the file that config.json names as ``transformers_weights``; else ``model.safetensors``; else the
shards that ``model.safetensors.index.json`` names. What else lies there (an older index, a variant, the original
author's format) is not read, and is named, as a reader may take it for the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: lies in the folder but is no part of the checkpoint; see ``packed/embedding.py``
EMBEDDING_CODES = "embedding_codes.safetensors"
_CONFIG, _CHOSEN, _ADAPTER = "config.json", "transformers_weights", "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OTHER_WEIGHTS = ("*.safetensors", *PICKLES, "*.h5", "*.msgpack", "*.index.json")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin", EMBEDDING_CODES)
_CONVERT = "load it with transformers and call save_pretrained(..., safe_serialization=True)"


@dataclass(frozen=True)
class WeightFiles:
    """``files``: what is read, in the order of transformers. ``homes``: tensor -> file name where an index says so.

    ``remarks``: what is to be said of other weights in the folder.
    """

    files: list[Path]
    homes: dict[str, str]
    remarks: list[str]


def weight_files(folder: Path) -> WeightFiles:
    """The files of a folder's weights. Raises ColdpressError, with what to do, where transformers would find none."""
    chosen = _first_of(folder)
    if (folder / _ADAPTER).is_file():
        raise ColdpressError(
            f"{folder} holds a model and an adapter ({_ADAPTER}): transformers puts the adapter on, where PEFT is"
            " installed",
            hint="move the adapter into a folder of its own, and pass it with --adapter_path",
        )
    if not chosen.name.endswith(".index.json"):
        found = WeightFiles([chosen], {}, [])
    else:
        homes = read_index(chosen)
        names = sorted(set(homes.values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ColdpressError(
                f"{folder}: {chosen.name} names {missing[0]}, which is missing",
                hint="download the missing file, or the whole model, again",
            )
        found = WeightFiles([folder / name for name in names], homes, [])
    return WeightFiles(found.files, found.homes, _remarks(folder, chosen, found.files))


def read_index(index: Path) -> dict[str, str]:
    """Tensor -> file name, as an index says."""
    try:
        homes = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(home, str) for home in homes.values()):
            return dict(homes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ColdpressError(f"{index} is not a safetensors index: {error!r}") from error
    raise ColdpressError(f"{index} is not a safetensors index: weight_map does not map names to file names")


def has_weights(folder: Path) -> bool:
    """Whether a folder has files that are read as its weights."""
    return any((folder / name).is_file() for name in (WHOLE, INDEX)) or _chosen_name(folder) is not None


def _first_of(folder: Path) -> Path:
    """The file that transformers opens first: tensors or an index."""
    names = [name for name in (_chosen_name(folder), WHOLE, INDEX) if name]
    for name in names[:1] if len(names) > 2 else names:
        if (folder / name).is_file():
            return folder / name
    raise _no_weights(folder, names)


def _chosen_name(folder: Path) -> str | None:
    try:
        name: Any = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get(_CHOSEN)
    except (OSError, ValueError, AttributeError):  # said where the configuration is read
        return None
    if name is not None and (not isinstance(name, str) or Path(name).name != name):
        raise ColdpressError(f"{folder / _CONFIG}: {_CHOSEN} is {name!r}, which is no file of that folder")
    return name


def _no_weights(folder: Path, names: list[str]) -> ColdpressError:
    """Why nothing in a folder is read as its weights, and what to do about it."""
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in _NO_WEIGHTS)
    pickles = sorted({path.name for pattern in PICKLES for path in folder.glob(pattern)} - {*_NO_WEIGHTS})
    if len(names) > 2:
        return ColdpressError(f"{folder / _CONFIG} names {names[0]} as {_CHOSEN}, which is missing")
    if any("-of-" in name for name in others):
        return ColdpressError(
            f"{folder} has {others[0]} but no {INDEX}, which says what shards there are",
            hint=f"download {INDEX} too, or save the model again with save_pretrained",
        )
    if others:
        return ColdpressError(
            f"{folder} has {', '.join(others[:3])}, but neither {WHOLE} nor {INDEX}, which transformers reads",
            hint=f"if {others[0]} holds this model as transformers names its tensors, rename it to {WHOLE}",
        )
    if pickles:
        return ColdpressError(
            f"{folder} has its weights as pickle ({pickles[0]}), which is not loaded: a pickle can run any code",
            hint=f"if you trust it, {_CONVERT}",
        )
    return ColdpressError(
        f"no safetensors files in {folder}", hint="save the model with save_pretrained, then try again"
    )


def _remarks(folder: Path, chosen: Path, files: list[Path]) -> list[str]:
    """A sentence about weights in the folder that are not read, if there are any."""
    read = {chosen.name, *(file.name for file in files), *_NO_WEIGHTS}
    index = folder / INDEX
    if chosen.name == WHOLE and index.is_file() and set(read_index(index).values()) == {WHOLE}:
        read.add(INDEX)
    others = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)} - read)
    if not others:
        return []
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    return [f"{', '.join(others[:4])}{more} beside {chosen.name} are not read: transformers loads {chosen.name}."]
