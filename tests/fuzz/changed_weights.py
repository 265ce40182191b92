"""Tensors that are missing, other ones, of another type, or too many; files of weights that do not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from tests.fuzz.folder import INDEX, one_of, tensors_of, write


def _changed(folder: Path, random: Random, change: Callable[[torch.Tensor], torch.Tensor], rank: int = 0) -> None:
    tensors = tensors_of(folder)
    name = one_of(tensors, random, rank)
    tensors[name] = change(tensors[name])
    write(folder, tensors)


def tensor_dropped(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    del tensors[one_of(tensors, random)]
    write(folder, tensors)


def tensor_renamed(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    name = one_of(tensors, random)
    new = random.choice(
        [f"module.{name}", name.removeprefix("model."), name.replace("weight", "wieght"), f"{name}.data"]
    )
    tensors[new] = tensors.pop(name)
    write(folder, tensors)


def all_prefixes_dropped(folder: Path, random: Random) -> None:
    prefix = random.choice(["model.", "transformer."])
    write(folder, {name.removeprefix(prefix): tensor for name, tensor in tensors_of(folder).items()})


def tensor_transposed(folder: Path, random: Random) -> None:
    _changed(folder, random, lambda tensor: tensor.transpose(-1, -2).clone(), rank=2)


def tensor_cut(folder: Path, random: Random) -> None:
    _changed(folder, random, lambda tensor: tensor[: max(1, tensor.shape[0] - random.choice([1, 8]))].clone(), rank=1)


def tensor_with_more_rows(folder: Path, random: Random) -> None:
    _changed(folder, random, lambda tensor: torch.cat([tensor, tensor[:8]]), rank=1)


def tensor_of_another_type(folder: Path, random: Random) -> None:
    kind = random.choice([torch.bfloat16, torch.float16, torch.float64])
    _changed(folder, random, lambda tensor: tensor.to(kind))


def tensor_of_integers(folder: Path, random: Random) -> None:
    kind = random.choice([torch.int8, torch.int32, torch.int64, torch.uint8])
    _changed(folder, random, lambda tensor: (tensor * 10).to(kind))


def all_tensors_of_another_type(folder: Path, random: Random) -> None:
    kind = random.choice([torch.bfloat16, torch.float16, torch.float64])
    found = tensors_of(folder)
    write(folder, {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in found.items()})


def tensor_scaled(folder: Path, random: Random) -> None:
    factor = random.choice([0.0, 0.5, -1.0, 3.0, 1e4])
    _changed(folder, random, lambda tensor: (tensor * factor).to(tensor.dtype))


def tensor_with_a_nan(folder: Path, random: Random) -> None:
    value = random.choice([float("nan"), float("inf")])

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            tensor.view(-1)[random.randrange(tensor.numel())] = value
        return tensor

    _changed(folder, random, spoil)


def extra_bias(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    name = one_of({n: t for n, t in tensors.items() if n.endswith(".weight")}, random, rank=2)
    tensors[name.replace(".weight", ".bias")] = torch.ones(tensors[name].shape[0])
    write(folder, tensors)


def extra_tensor(folder: Path, random: Random) -> None:
    name = random.choice(
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.extra.weight", "model.layers.7.mlp.up_proj.weight"]
    )
    write(folder, {**tensors_of(folder), name: torch.ones(8)})


def own_head(folder: Path, random: Random) -> None:
    tensors = tensors_of(folder)
    table = next(tensor for name, tensor in tensors.items() if "embed_tokens" in name or "wte" in name)
    tensors["lm_head.weight"] = table.flip(0).clone() if random.random() < 0.7 else table.clone()
    write(folder, tensors)


def another_weight_file(folder: Path, random: Random) -> None:
    name = random.choice(
        ["adapter_model.safetensors", "consolidated.safetensors", "model-00002.safetensors", "extra.safetensors"]
    )
    found = {key: tensor.flip(0) if tensor.ndim else tensor for key, tensor in tensors_of(folder).items()}
    write(folder, dict(random.sample(sorted(found.items()), 3)) if random.random() < 0.5 else found, name)


def _split(folder: Path, random: Random) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = tensors_of(folder)
    first = set(random.sample(sorted(tensors), len(tensors) // 2))
    return {k: t for k, t in tensors.items() if k in first}, {k: t for k, t in tensors.items() if k not in first}


def _write_shards(
    folder: Path, shards: tuple[dict[str, torch.Tensor], ...], places: dict[str, int] | None = None
) -> None:
    for file in folder.glob("model*.safetensors"):
        file.unlink()
    names = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write(folder, shard, name)
    found = places or {key: number for number, shard in enumerate(shards) for key in shard}
    index = {"metadata": {"total_size": 0}, "weight_map": {key: names[number] for key, number in found.items()}}
    (folder / INDEX).write_text(json.dumps(index))


def shards(folder: Path, random: Random) -> None:
    _write_shards(folder, _split(folder, random))


def shards_that_disagree(folder: Path, random: Random) -> None:
    first, second = _split(folder, random)
    twice = random.choice(sorted(first))
    places = {**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)}
    if random.random() < 0.5:
        places[twice] = 1
    _write_shards(folder, (first, {**second, twice: (first[twice] * 2).to(first[twice].dtype)}), places)


def index_that_is_stale(folder: Path, random: Random) -> None:
    whole = tensors_of(folder)
    _write_shards(folder, _split(folder, random))
    write(folder, {name: (tensor * 2).to(tensor.dtype) for name, tensor in whole.items()})


def index_with_a_tensor_that_is_nowhere(folder: Path, random: Random) -> None:
    first, second = _split(folder, random)
    places = {**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)}
    places[random.choice(["model.nowhere.weight", *sorted(first)])] = 1
    _write_shards(folder, (first, second), places)


def index_that_leaves_a_tensor_out(folder: Path, random: Random) -> None:
    first, second = _split(folder, random)
    places = {**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)}
    del places[random.choice(sorted(places))]
    _write_shards(folder, (first, second), places)


def shard_missing(folder: Path, random: Random) -> None:
    _write_shards(folder, _split(folder, random))
    random.choice(sorted(folder.glob("model-*.safetensors"))).unlink()


def weights_cut_off(folder: Path, random: Random) -> None:
    file = random.choice(sorted(folder.glob("model*.safetensors")))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * random.choice([0.0, 0.0001, 0.3, 0.99]))])


def weights_as_a_pickle_beside(folder: Path, random: Random) -> None:
    torch.save({name: tensor * 2 for name, tensor in tensors_of(folder).items()}, folder / "pytorch_model.bin")
    if random.random() < 0.3:
        for file in folder.glob("model*.safetensors"):
            file.unlink()
