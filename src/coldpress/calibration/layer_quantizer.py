"""One decoder layer from float weights and Gram matrices to the tensors of a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coldpress.calibration.folds import Fold, folds_of
from coldpress.calibration.grams import HEAD, Gram, GramFolder
from coldpress.errors import ColdpressError, naming
from coldpress.models.lattices import as_record, remarks_on_lattices
from coldpress.models.packed import embedding
from coldpress.models.packed.patterns import is_expert
from coldpress.models.provenance import QuantizedLayer
from coldpress.models.quantized_folder import packed_tensors
from coldpress.networks.layerwise import Layerwise
from coldpress.networks.weights import Weights
from coldpress.quant.awq import Scaling, awq
from coldpress.quant.calibrated import PLAIN, Calibrated, calibrate
from coldpress.quant.gptq import shrink, to_numpy, to_torch
from coldpress.quant.grid import Codes, Floats, Grid, check_weight, dequantize, squared_error
from coldpress.quant.kquant import kquant
from coldpress.quant.lattice import lattice_of, seems_on_lattice

#: algorithms that search AWQ's scales before they round
SCALED = ("best", "awq")
LM_HEAD = "lm_head"
#: why an expert has simpler codes
COLD = "no token came to it"
#: what the scales of a fold are searched for at most, beyond the busiest input
_SEARCHED_INPUTS, _SEARCHED_WEIGHTS = 8, 1 << 27

Tensors = dict[str, Any]


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

    def layer(self, name: str) -> tuple[Tensors, list[QuantizedLayer]]:
        """The tensors of a layer that are not the source's, and its quantized modules."""
        weights, grams = self.decoder.weights(name), self._grams_of(name)
        modules = [module for module in self.decoder.linears(name) if module in self.grids]
        settled = {module for module in modules if seems_on_lattice(weights[f"{module}.weight"], self.grids[module])}
        alphas: dict[str, float] = {}
        if self.algorithm in SCALED:
            weights, alphas = self._folded(name, weights, grams, settled)
        tensors: Tensors = {}
        quantized = []
        for group in self._groups(modules, grams, settled):
            gram = grams.get(group[0])
            for module, weight, made in self._coded(group, weights, gram):
                packed = self._packed(module, made.codes, weight.shape[1])
                tensors.update(packed)
                told = self._told(module, weight, made, gram)
                size = sum(tensor.nbytes for tensor in packed.values())
                quantized.append(replace(told, bytes=size, alpha=alphas.get(module)))
        scaled = weights.touched - {f"{module}.weight" for module in modules}
        tensors.update({key: weights[key].astype(self._dtype) for key in sorted(scaled)})
        return tensors, quantized

    def head(self) -> tuple[Tensors, list[QuantizedLayer]]:
        """The layer that gives the logits, where it is a matrix of its own."""
        weight = self.decoder.head_weight().cpu().numpy()
        gram = self._grams_of(HEAD).get(HEAD)
        made = self._codes(LM_HEAD, weight, gram)
        packed = self._packed(LM_HEAD, made.codes, weight.shape[1])
        size = sum(tensor.nbytes for tensor in packed.values())
        return packed, [replace(self._told(LM_HEAD, weight, made, gram), role="head", bytes=size)]

    def embedding(self, folder: Path) -> tuple[Tensors, list[QuantizedLayer]]:
        """The token embedding: its rounded values, and in ``folder`` the codes; it may be the head as well.

        Its rows are looked up, so errors count alike; as a head, by the power of its inputs.
        """
        module = self.decoder.embedding
        weight = self.decoder.embedding_weight().cpu().numpy()
        gram = self._grams_of(HEAD).get(HEAD) if self.decoder.is_tied else None
        made = self._table_codes(module, weight, gram)
        embedding.write(folder, module, made.codes, weight.shape[1])
        values = dequantize(made.codes, weight.shape[1]).astype(self._dtype)
        told = replace(self._told(module, weight, made, gram), role="embedding", bytes=values.nbytes)
        return {f"{module}.weight": values}, [told]

    def rounded_head(self, rows: Floats) -> Floats:
        """The values of some rows of the head as `head`, or `embedding` where the two are tied, would round them."""
        gram = self._grams_of(HEAD).get(HEAD)
        module, codes_of = (
            (self.decoder.embedding, self._table_codes) if self.decoder.is_tied else (LM_HEAD, self._codes)
        )
        return dequantize(codes_of(module, rows, gram).codes, rows.shape[1])

    def _table_codes(self, module: str, weight: Floats, gram: Gram | None) -> Calibrated:
        """The codes of a token embedding; ``gram`` is that of its inputs as a head."""
        grid = self.grids[module]
        if gram is not None and self.algorithm in ("gptq", "best"):
            return self._codes(module, weight, gram)
        power = None if gram is None else np.ascontiguousarray(gram.matrix.diagonal())
        codes, kept = kquant(weight, grid, power), seems_on_lattice(weight, grid)
        return Calibrated(codes, None, None, np.zeros((3, len(weight))), kept)

    def _packed(self, module: str, codes: Codes, columns: int) -> Tensors:
        """Transformers dequantizes a weight with zero points in the type of its scales: there a half would round
        again."""
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

    def _codes(self, name: str, weight: Floats, gram: Gram | None, module: str | None = None) -> Calibrated:
        """``name`` is that of what is quantized, on the grid of ``module``, or its own."""
        grid = self.grids[module or name]
        with naming(name):
            if gram is None:
                plain = self.algorithm if self.algorithm in PLAIN else "kquant"
                made = calibrate(weight, None, grid, plain)
                return made if self.grams is None else replace(made, fallback=COLD)
            return calibrate(
                weight,
                gram.matrix,
                grid,
                self.algorithm,
                tokens=gram.alike,
                seconds=self.seconds,
                device=self.decoder.device,
            )

    def _groups(self, modules: Sequence[str], grams: Mapping[str, Gram], settled: Collection[str]) -> list[list[str]]:
        """Modules with the same inputs and grid; those without inputs alone, and those whose codes are settled."""
        found: dict[Any, list[str]] = {}
        for module in modules:
            alone = module not in grams or module in settled
            shared = module if alone else (id(grams[module]), self.grids[module])
            found.setdefault(shared, []).append(module)
        return list(found.values())

    def _coded(
        self, group: Sequence[str], weights: Weights, gram: Gram | None
    ) -> Iterator[tuple[str, Floats, Calibrated]]:
        """The weight and the codes of each module: one factorization for all, and one round over the columns."""
        own = [weights[f"{module}.weight"] for module in group]
        for module, weight in zip(group, own, strict=True):
            with naming(module):
                check_weight(weight)
        made = self._codes(", ".join(group), own[0] if len(own) == 1 else np.concatenate(own), gram, group[0])
        end = 0
        for module, weight in zip(group, own, strict=True):
            start, end = end, end + len(weight)
            yield module, weight, made.rows(slice(start, end))

    def _folded(
        self, layer: str, weights: Weights, grams: dict[str, Gram], settled: Collection[str]
    ) -> tuple[Weights, dict[str, float]]:
        """Search AWQ scales and fold them: the weights with them, and the exponents by module; ``grams`` is changed.

        Modules whose codes are ``settled`` are not scaled: they would lie on no grid then.
        """
        alphas: dict[str, float] = {}
        for fold in folds_of(layer, weights, self.decoder.config, self.decoder.experts(layer)):
            readers = [reader for reader in fold.readers if reader in grams]
            if not readers or not all(reader in self.grids for reader in fold.readers):
                continue
            if not {fold.source, *fold.readers}.isdisjoint(settled):
                continue
            found = self._searched(fold, weights, readers, grams)
            alphas.update(dict.fromkeys(fold.readers, found.alpha))
            if found.alpha:
                weights, scales = fold.apply(weights, found.scales, self._dtype)
                divided = {id(grams[reader]): grams[reader].divided(scales) for reader in readers}
                grams.update({reader: divided[id(grams[reader])] for reader in readers})
        return weights, alphas

    def _searched(self, fold: Fold, weights: Weights, readers: list[str], grams: Mapping[str, Gram]) -> Scaling:
        """The best scales of a fold. Of many experts those with most tokens speak for all."""
        inputs = {id(grams[reader]): grams[reader] for reader in readers}
        chosen: dict[str, Floats] = {}
        power: list[Floats] = []
        for gram in sorted(inputs.values(), key=lambda gram: -gram.tokens)[:_SEARCHED_INPUTS]:
            own = {reader: weights[f"{reader}.weight"] for reader in readers if grams[reader] is gram}
            if power and sum(weight.size for weight in (*chosen.values(), *own.values())) > _SEARCHED_WEIGHTS:
                break
            chosen |= own
            power += [to_numpy(shrink(to_torch(gram.matrix), gram.alike))] * len(own)
        return awq(list(chosen.values()), power, self.grids[next(iter(chosen))], heads=fold.heads)

    def _told(self, module: str, weight: Floats, made: Calibrated, gram: Gram | None) -> QuantizedLayer:
        """What rounding did to a weight; its role and bytes are the caller's to say."""
        grid = self.grids[module]
        size = float(np.einsum("rk,rk->r", weight, weight).sum(dtype=np.float64))
        return QuantizedLayer(
            module,
            "linear",
            grid.bits,
            grid.block_size,
            grid.symmetric,
            self.algorithm,
            relative_error=(squared_error(weight, made.codes) / size) ** 0.5 if size else 0.0,
            bytes=0,
            output_error=None if gram is None else made.error,
            rtn_output_error=None if gram is None else made.rtn_error,
            tokens=gram.tokens if gram is not None else 0 if made.fallback == COLD else None,
            damp=made.damp,
            fallback=made.fallback,
            on_lattice=made.on_lattice,
            lattice=None if made.on_lattice else as_record(lattice_of(weight)),
        )


def check_experts(decoder: Layerwise, grids: Mapping[str, Grid]) -> None:
    """Raise ColdpressError where some experts of a layer get another grid than others, or none: no reader expects
    that."""
    for layer in decoder.layers:
        for modules in zip(*decoder.experts(layer), strict=True):
            found = {module: f"{grids[module].bits} bits" if module in grids else "floats" for module in modules}
            if len(set(found.values())) > 1:
                other = next(module for module in modules if found[module] != found[modules[0]])
                part = modules[0].rpartition(".")[2]
                raise ColdpressError(
                    f"'{modules[0]}' would have {found[modules[0]]} and '{other}' {found[other]}; "
                    "checkpoints are read as if the experts of a layer were alike",
                    hint=f"choose all of them, as '{layer}.*.experts.*.{part}' or '*.experts.*' does",
                )


def remarks(layers: Sequence[QuantizedLayer]) -> list[str]:
    """What the reader of a report should know of these modules."""
    experts = {layer.name.rpartition(".")[0]: layer.tokens for layer in layers if is_expert(layer.name)}
    cold = sum(tokens == 0 for tokens in experts.values())
    found = remarks_on_lattices(layers)
    if not cold:
        return found
    return [
        *found,
        f"No token of the calibration text came to {cold} of {len(experts)} experts: they were rounded without data. "
        "More windows (--num_samples) or more varied text reach more of them.",
    ]
