"""The codes of a quantized token embedding, kept beside a checkpoint that holds the same embedding as floats.

No loader of Hugging Face checkpoints reads a packed embedding, so its values are stored as floats where every loader
looks, and what they were rounded to here. ``embedding_codes.safetensors`` holds the tensors that compressed-tensors
would have, and in its header, under each module's name, ``{"bits", "block_size", "symmetric"}``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from coldpress.errors import ColdpressError
from coldpress.models.checkpoint import Span, read_header, read_metadata
from coldpress.models.packed import compressed_tensors
from coldpress.models.packed.linear import PackedLinear
from coldpress.models.weight_files import EMBEDDING_CODES
from coldpress.quant.grid import Codes, Grid

#: training moves the rows of the tokens it has seen; so many runs of so many rows hold some of them
_COMPARED_RUNS, _RUN_ROWS = 64, 16
#: what rounding a value to the checkpoint's type may change of it, relatively; twice the half of a last bit
_ROUNDING = {"F64": 1e-6, "F32": 1e-6, "F16": 2.0**-10, "BF16": 2.0**-7}


def write(folder: Path, module: str, codes: Codes, columns: int) -> None:
    """Put the codes of ``module``'s table, ``columns`` wide, beside the checkpoint in ``folder``.

    Codes of other modules that are there already stay. ColdpressError where blocks do not divide a row.
    """
    from safetensors.numpy import load_file, save_file

    file, grid = folder / EMBEDDING_CODES, codes.grid
    tensors = load_file(file) if file.is_file() else {}
    settings = read_metadata(file) if file.is_file() else {}
    settings[module] = json.dumps({"bits": grid.bits, "block_size": grid.block_size, "symmetric": grid.symmetric})
    tensors.update(compressed_tensors.tensors_of(module, codes, columns, grid.scale_dtype))
    save_file(tensors, file, metadata=settings)


def read(folder: Path) -> dict[str, PackedLinear]:
    """The embeddings of a folder whose codes are known, by module name; empty where none are kept."""
    file = folder / EMBEDDING_CODES
    if not file.is_file():
        return {}
    try:
        settings = {module: json.loads(text) for module, text in read_metadata(file).items()}
        grids = {
            module: Grid(found["bits"], found["block_size"], found["symmetric"]) for module, found in settings.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ColdpressError(
            f"the header of {file} does not describe codes: {error!r}",
            hint="delete the file: the embedding's values are in the checkpoint too",
        ) from error
    return compressed_tensors.linears_in(read_header(file), compressed_tensors.config_of(grids)) if grids else {}


def still_describes(linear: PackedLinear, table: Span) -> bool:
    """Whether the floats in ``table`` are still the values of the codes, by a sample of their rows."""
    if table.shape != (linear.rows, linear.columns) or table.dtype not in _ROUNDING:
        return False
    last = max(0, linear.rows - _RUN_ROWS)
    for start in np.unique(np.linspace(0, last, _COMPARED_RUNS).astype(int)):
        stop = min(start + _RUN_ROWS, linear.rows)
        # below the smallest normal number of float16, rounding is absolute
        same = np.isclose(
            table.rows(start, stop), linear.dequantized(start, stop), rtol=_ROUNDING[table.dtype], atol=2.0**-24
        )
        if not same.all():
            return False
    return True
