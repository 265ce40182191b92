"""The frozen network that an adapter is trained on, with exactly the values that its folder holds, quantized or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.calibration.grams import multiplies_in_bfloat16
from coldpress.errors import WORK_FAILED, ColdpressError

if TYPE_CHECKING:
    import torch

#: tokens that run at once where memory allows
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}


def compute_dtype(asked: str | None, device: str) -> torch.dtype:
    """The type of the frozen weights and of all products: what was asked for, else the fastest that this device has."""
    import torch

    if asked == "float16" and device == "cpu":
        raise ColdpressError("float16 has no products on a CPU that can be trained in", hint="use bfloat16 or float32")
    if asked is not None:
        found: torch.dtype = getattr(torch, asked)
        return found
    if multiplies_in_bfloat16(device):
        return torch.bfloat16
    return torch.float32 if device == "cpu" else torch.float16


def load_base(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The causal language model of a folder, its weights cast to ``dtype`` and frozen.

    Layers that are quantized in the folder get the values that their codes stand for, by our own reader: transformers
    does not load every such folder, and rounds in its own way where it does.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from coldpress.models.packed.folder import quantization_config
    from coldpress.networks.dense import load_dense

    logging.disable_progress_bar()
    if quantization_config(folder) is not None:
        model = load_dense(folder, dtype, trust_remote_code)
    else:
        options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ColdpressError(f"transformers cannot load {folder}: {reason}", exit_code=WORK_FAILED) from error
    return _frozen(model, folder)


@dataclass(frozen=True)
class Room:
    """``tokens_at_once``: of how many tokens the activations fit into memory; ``needs_checkpointing``: only if computed
    twice."""

    tokens_at_once: int
    needs_checkpointing: bool


def room_for(network: Any, device: str, longest: int, checkpointing: bool) -> Room:
    """How many tokens may run at once, ``longest`` at least; more than a few thousand are no faster.

    Of each token the inputs and outputs of all linear layers are kept, and as much again of what is between them.
    """
    from torch import nn

    weights = next(network.parameters())
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    kept = 2 * sum(module.in_features + module.out_features for module in linears) * weights.element_size()
    layers = network.config.get_text_config().num_hidden_layers
    lean = kept // layers + layers * network.config.get_text_config().hidden_size * weights.element_size()
    free = _free_bytes(device, network)
    needs = not checkpointing and longest * kept > free
    fitting = int(free // (lean if needs or checkpointing else kept))
    return Room(max(longest, min(_TOKENS_AT_ONCE[device], fitting)), needs)


def _free_bytes(device: str, network: Any) -> float:
    """What activations may take of the memory that is free now."""
    import torch

    if device == "cuda":
        size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        is_there = next(network.parameters()).is_cuda
        return 0.8 * (torch.cuda.mem_get_info()[0] - (0 if is_there else size))
    import psutil

    return 0.5 * float(psutil.virtual_memory().available)


def check_bitsandbytes() -> None:
    """Raise ColdpressError where bitsandbytes cannot be loaded."""
    hint = "pip install bitsandbytes; or quantize the model first and use --method lora on that folder"
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ColdpressError("method qlora needs bitsandbytes, which is not installed", hint=hint) from None
    except (OSError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(
            f"method qlora needs bitsandbytes, which does not load here: {reason}", hint=hint
        ) from error


def load_in_4_bits(
    folder: Path, dtype: torch.dtype, device: str, numbers: tuple[str, bool], trust_remote_code: bool = False
) -> Any:
    """The model of a float folder as bitsandbytes rounds it; ``numbers``: their type, and whether scales are rounded,
    too."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=numbers[0],
        bnb_4bit_use_double_quant=numbers[1],
        bnb_4bit_compute_dtype=dtype,
    )
    options = {"quantization_config": settings, "dtype": dtype, "device_map": {"": device}}
    options |= {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        return _frozen(AutoModelForCausalLM.from_pretrained(folder, **options), folder)
    except (OSError, ValueError, ImportError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(
            f"bitsandbytes cannot hold {folder} in 4 bits on this device: {reason}",
            hint="quantize the model first and use --method lora on that folder",
            exit_code=WORK_FAILED,
        ) from error


def _frozen(model: Any, folder: Path) -> Any:
    model.name_or_path = str(folder)  # where PEFT looks for its config.json with each checkpoint
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.config.use_cache = False
    return model
