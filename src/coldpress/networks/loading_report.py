"""What transformers makes of the tensors of a folder: under which names it takes them, and which it has no place for.

It is asked in a process of its own, as torch is hidden from the one that builds graphs, and only where something is in
doubt. No values are loaded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.models.checkpoint import Checkpoint, Span
from coldpress.models.packed.folder import quantization_config

_FLOATS = ("F64", "F32", "F16", "BF16")
#: what belongs to codes of a quantized layer, in any format, and would be lost with them
_OF_CODES = (
    r"(scales?|scale_inv|qweight|q?zeros|zero_points?|g_idx|absmax|quant_map|quant_state[^.]*|codebooks?|codes)$"
)


@dataclass(frozen=True)
class LoadingReport:
    """``names``: name in the folder -> name in the network, where it is another. ``unused``: names in the folder that
    transformers has no place for, and says so; ``ignored``: those that it leaves out of any folder without a word.
    """

    names: Mapping[str, str]
    unused: frozenset[str]
    ignored: frozenset[str]


def loading_report(folder: Path, architecture: str) -> LoadingReport | None:
    """The report of transformers' class of an architecture; None where it has no such class."""
    command = [sys.executable, "-m", __name__, str(folder), architecture]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    names, unused, ignored = json.loads(done.stdout.splitlines()[-1])
    return LoadingReport(names, frozenset(unused), frozenset(ignored))


def left_out(folder: Path, tensors: Mapping[str, Span], report: LoadingReport) -> list[str]:
    """What transformers has no place for, and is no loss: nothing of a folder in which something can be codes, or
    scales for them."""
    if quantization_config(folder) is not None or any(span.dtype not in _FLOATS for span in tensors.values()):
        return []
    return [name for name in tensors if name in report.unused and not re.search(_OF_CODES, name)]


def _report(folder: Path, architecture: str) -> tuple[dict[str, str], list[str], list[str]]:
    import transformers

    from coldpress.networks.empty import renaming

    stored, network_class = Checkpoint(folder).tensors, getattr(transformers, architecture)
    patterns = network_class._keys_to_ignore_on_load_unexpected or []
    known = [name for name in stored if any(re.search(pattern, name) for pattern in patterns)]
    try:
        network, unexpected = _loaded_without_values(network_class, folder)
    except (ImportError, ValueError, OSError, RuntimeError, LookupError, AttributeError, TypeError):
        return {}, [], known  # a format that needs a package which is not here
    rename, places = renaming(network), set(network.state_dict())
    renamed = {name: rename(name) for name in stored}
    names = {name: there for name, (there, is_converted) in renamed.items() if there != name and not is_converted}
    unused = [name for name in stored if {name, names.get(name)} & unexpected]
    return names, unused, [name for name in known if names.get(name, name) not in places]


def _loaded_without_values(network_class: Any, folder: Path) -> tuple[Any, set[str]]:
    from transformers.utils import is_accelerate_available, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    nowhere = {"device_map": "meta"} if is_accelerate_available() else {"dtype": "auto"}  # or in mapped files
    network, found = network_class.from_pretrained(folder, output_loading_info=True, local_files_only=True, **nowhere)
    return network, set(found["unexpected_keys"])


if __name__ == "__main__":
    print(json.dumps(_report(Path(sys.argv[1]), sys.argv[2])))
