"""One decoder layer from float weights and Gram matrices to the tensors of a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.errors import naming
from coldpress.networks.folds import folds_of
from coldpress.networks.grams import HEAD, Gram, GramFolder
from coldpress.networks.layerwise import Layerwise
from coldpress.networks.packed import embedding
from coldpress.networks.quantized_folder import packed_tensors
from coldpress.quant.awq import awq
from coldpress.quant.calibrated import Calibrated, calibrate
from coldpress.quant.gptq import shrink, to_numpy, to_torch
from coldpress.quant.grid import Codes, Floats, Grid, dequantize, squared_error
from coldpress.quant.kquant import kquant

#: algorithms that search AWQ's scales before they round
SCALED = ("best", "awq")
LM_HEAD = "lm_head"

Tensors = dict[str, Any]
Note = dict[str, Any]


@dataclass
class LayerQuantizer:
    """``grids``: of each module that is quantized; ``grams``: None for algorithms that need no data.

    ``form``: of the checkpoint; ``scale_dtype``: what scales, norms and biases are stored as; ``seconds``: for the
    polish of one module.
    """

    decoder: Layerwise
    grids: Mapping[str, Grid]
    grams: GramFolder | None
    algorithm: str
    form: str
    scale_dtype: str
    seconds: float | None = None

    def layer(self, name: str) -> tuple[Tensors, list[Note]]:
        """The tensors of a layer, all of them, and what is to be noted of each quantized module."""
        weights = {key: tensor.cpu().numpy() for key, tensor in self.decoder.weights(name).items()}
        grams = self._grams_of(name)
        alphas = self._fold(name, weights, grams) if self.algorithm in SCALED else {}
        tensors: Tensors = {}
        notes = []
        for module in self.decoder.linears(name):
            if module not in self.grids:
                continue
            weight, gram = weights.pop(f"{module}.weight"), grams.get(module)
            made = self._codes(module, weight, gram)
            packed = self._packed(module, made.codes, weight.shape[1])
            tensors.update(packed)
            note = self._note(module, weight, made, packed)
            notes.append({**note, "alpha": alphas.get(module), "tokens": None if gram is None else gram.tokens})
        tensors.update({key: weight.astype(self._dtype) for key, weight in weights.items()})
        return tensors, notes

    def head(self) -> tuple[Tensors, list[Note]]:
        """The layer that gives the logits, where it is a matrix of its own."""
        weight = self.decoder.head_weight().cpu().numpy()
        made = self._codes(LM_HEAD, weight, self._grams_of(HEAD).get(HEAD))
        packed = self._packed(LM_HEAD, made.codes, weight.shape[1])
        return packed, [{**self._note(LM_HEAD, weight, made, packed), "role": "head"}]

    def embedding(self, folder: Path) -> tuple[Tensors, list[Note]]:
        """The token embedding: its rounded values, and in ``folder`` the codes; it may be the head as well.

        Its rows are looked up, so errors count alike; as a head, by the power of its inputs.
        """
        module = self.decoder.embedding
        weight = self.decoder.tensor(f"{module}.weight").cpu().numpy()
        gram = self._grams_of(HEAD).get(HEAD) if self.decoder.is_tied else None
        grid = self.grids[module]
        if gram is not None and self.algorithm in ("gptq", "best"):
            made = self._codes(module, weight, gram)
        else:
            power = None if gram is None else np.ascontiguousarray(gram.matrix.diagonal())
            made = Calibrated(kquant(weight, grid, power), None, None, 0.0, 0.0)
        embedding.write(folder, module, made.codes, weight.shape[1])
        values = dequantize(made.codes, weight.shape[1]).astype(self._dtype)
        note = {**self._note(module, weight, made, {}), "role": "embedding", "bytes": values.nbytes}
        return {f"{module}.weight": values}, [note if gram is not None else {**note, "output_error": None}]

    def _packed(self, module: str, codes: Codes, columns: int) -> Tensors:
        """Transformers dequantizes a weight with zero points in the type of its scales: there a half would round again."""
        exact = self.decoder.dtype == "float32" and not codes.grid.symmetric
        return packed_tensors(self.form, module, codes, columns, "float32" if exact else self.scale_dtype)

    @property
    def _dtype(self) -> Any:
        if self.scale_dtype == "bfloat16":
            from ml_dtypes import bfloat16

            return bfloat16
        return np.dtype(self.decoder.dtype)

    def _grams_of(self, layer: str) -> dict[str, Gram]:
        if self.grams is None:
            return {}
        return {module: gram for gram in self.grams.get(layer) for module in gram.modules}

    def _codes(self, module: str, weight: Floats, gram: Gram | None) -> Calibrated:
        with naming(module):
            if gram is None:
                # an expert that no token came to, or an algorithm that needs no data
                plain = self.algorithm if self.algorithm in ("rtn", "kquant", "hqq") else "kquant"
                return calibrate(weight, None, self.grids[module], plain)
            return calibrate(
                weight,
                gram.matrix,
                self.grids[module],
                self.algorithm,
                tokens=gram.tokens,
                seconds=self.seconds,
                device=self.decoder.device,
            )

    def _fold(self, layer: str, weights: dict[str, Floats], grams: Mapping[str, Gram]) -> dict[str, float]:
        """Search AWQ scales and fold them into ``weights`` and ``grams``; the exponents by module."""
        alphas: dict[str, float] = {}
        for fold in folds_of(layer, weights, self.decoder.config):
            if not all(reader in self.grids and reader in grams for reader in fold.readers):
                continue
            gram, grid = grams[fold.readers[0]], self.grids[fold.readers[0]]
            power = to_numpy(shrink(to_torch(gram.matrix), gram.tokens))
            found = awq([weights[f"{reader}.weight"] for reader in fold.readers], power, grid, heads=fold.heads)
            alphas.update(dict.fromkeys(fold.readers, found.alpha))
            if found.alpha:
                scales = fold.apply(weights, found.scales, self._dtype)
                gram.matrix /= scales
                gram.matrix /= scales[:, None]
        return alphas

    def _note(self, module: str, weight: Floats, made: Calibrated, packed: Tensors) -> Note:
        grid = self.grids[module]
        missed = squared_error(weight, made.codes)
        size = float(np.square(weight, dtype=np.float64).sum())
        return {
            "name": module,
            "role": "linear",
            "bits": grid.bits,
            "block_size": grid.block_size,
            "symmetric": grid.symmetric,
            "algorithm": self.algorithm,
            "relative_error": (missed / size) ** 0.5 if size else 0.0,
            "output_error": made.error if self.grams is not None else None,
            "rtn_output_error": made.rtn_error if self.grams is not None else None,
            "damp": made.damp,
            "fallback": made.fallback,
            "exact": missed == 0.0,
            "bytes": sum(tensor.nbytes for tensor in packed.values()),
        }
