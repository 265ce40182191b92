"""Quantized folders: codes, scales and what config.json says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz.folder import edit, tensors_of, write


def _quantized(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder / "config.json", lambda config: change(config["quantization_config"]))


def _packing(tensors: dict[str, torch.Tensor], *ends: str) -> list[str]:
    return sorted(name for name in tensors if name.endswith(ends))


def scale_changed(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    name = random.choice(_packing(tensors, "scale", "scales"))
    change = random.choice(["double", "type", "drop", "transpose", "column"])
    tensor = tensors.pop(name)
    if change != "drop":
        other = random.choice([torch.float32, torch.bfloat16, torch.float16])
        made = {"double": tensor * 2, "type": tensor.to(other), "transpose": tensor.T, "column": tensor[..., :1]}[
            change
        ]
        tensors[name] = made.clone()
    write(folder, tensors)


def codes_changed(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    name = random.choice(_packing(tensors, "qweight", "weight_packed"))
    change = random.choice(["flip", "drop", "transpose", "float", "int8"])
    tensor = tensors.pop(name)
    if change != "drop":
        made = {"flip": tensor.flip(0), "transpose": tensor.T, "float": tensor.float(), "int8": tensor.to(torch.int8)}[
            change
        ]
        tensors[name] = made.clone()
    write(folder, tensors)


def zero_points_changed(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    names = _packing(tensors, "qzeros", "zero_point", "g_idx", "weight_shape")
    if names:
        name = random.choice(names)
        tensor = tensors.pop(name)
        if random.random() < 0.7:
            tensors[name] = tensor.flip(0).clone()
        write(folder, tensors)


def packed_layer_as_floats_too(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    module = random.choice(_packing(tensors, "qweight", "weight_packed")).rpartition(".")[0]
    tensors[f"{module}.weight"] = torch.randn(64, 64)
    write(folder, tensors)


def numbers_of_the_grid(folder: Path, random: Random) -> None:
    key, value = random.choice([("bits", 8), ("bits", 2), ("group_size", 16), ("group_size", -1), ("sym", True), ("sym", False),
                                ("desc_act", True), ("zero_point", False), ("version", "gemv"), ("checkpoint_format", "gptq_v2"),
                                ("checkpoint_format", "marlin"), ("lm_head", True)])  # fmt: skip

    def change(quantized: dict[str, Any]) -> None:
        groups = [group["weights"] for group in quantized.get("config_groups", {}).values()]
        for place in groups or [quantized]:
            names = {"bits": "num_bits", "sym": "symmetric"} if groups else {}
            place[names.get(key, key)] = value

    _quantized(folder, change)


def layers_left_alone(folder: Path, random: Random) -> None:
    key = random.choice(["ignore", "modules_to_not_convert"])
    value = random.choice([[], ["lm_head"], ["model.layers.0.self_attn.q_proj"], None, ["re:.*mlp.*"]])
    _quantized(folder, lambda quantized: quantized.update({key: value}))


def method_of_quantization(folder: Path, random: Random) -> None:
    key, value = random.choice([("quant_method", "gptq"), ("quant_method", "awq"), ("quant_method", None), ("format", "int-quantized"),
                                ("format", "dense"), ("quantization_status", "frozen"), ("kv_cache_scheme", {"num_bits": 8})])  # fmt: skip
    _quantized(folder, lambda quantized: quantized.update({key: value}))


def quantization_config_dropped(folder: Path, random: Random) -> None:
    edit(folder / "config.json", lambda config: config.pop("quantization_config"))


def quantization_config_elsewhere(folder: Path, random: Random) -> None:
    name = random.choice(["quantize_config.json", "quant_config.json"])
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    (folder / name).write_text(json.dumps({**found, "bits": random.choice([3, 4])}))
    if random.random() < 0.5:
        quantization_config_dropped(folder, random)
