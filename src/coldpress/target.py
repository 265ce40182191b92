"""Where a model shall run: device, execution provider, threads and memory."""

from __future__ import annotations

import difflib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from coldpress.errors import ColdpressError, did_you_mean

#: execution provider -> (devices it runs on, the usual one first; its name in mobius and in genai_config.json)
PROVIDERS = {
    "CPUExecutionProvider": (("cpu",), "cpu"),
    "CUDAExecutionProvider": (("gpu",), "cuda"),
    "DmlExecutionProvider": (("gpu", "npu"), "dml"),
    "WebGpuExecutionProvider": (("gpu",), "webgpu"),
    "TensorrtExecutionProvider": (("gpu",), "tensorrt"),
    "NvTensorRTRTXExecutionProvider": (("gpu",), "trt-rtx"),
    "MIGraphXExecutionProvider": (("gpu",), "migraphx"),
    "OpenVINOExecutionProvider": (("cpu", "gpu", "npu"), "openvino"),
    "QNNExecutionProvider": (("npu", "gpu", "cpu"), "qnn"),
    "VitisAIExecutionProvider": (("npu",), "vitisai"),
}
DEVICES = ("cpu", "gpu", "npu")
_SUFFIX = "ExecutionProvider"
#: providers that ONNX Runtime no longer has -> those that took their places
_SUCCESSORS = {"ROCMExecutionProvider": "MIGraphXExecutionProvider"}
_ALSO_CALLED = {"directml": "DmlExecutionProvider"}
_DEFAULT_PROVIDER = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider", "npu": "QNNExecutionProvider"}


@dataclass(frozen=True)
class Target:
    """A device and its execution provider. ``threads`` 0 means one for each physical core."""

    device: str = field(default="cpu", metadata={"help": "cpu, gpu or npu", "choices": DEVICES})
    provider: str = field(
        default="CPUExecutionProvider", metadata={"help": "execution provider", "choices": tuple(PROVIDERS)}
    )
    threads: int = field(default=0, metadata={"help": "threads; 0: all processors"})

    @property
    def short_name(self) -> str:
        """The provider's name in graph builders and in genai_config.json: ``cpu``, ``cuda``, ``dml``, ..."""
        return PROVIDERS[self.provider][1]

    @property
    def thread_count(self) -> int:
        return self.threads or physical_cores()

    @property
    def is_here(self) -> bool:
        """Whether the installed ONNX Runtime can run this provider on this machine."""
        return self.provider in available_providers()


def resolve_target(device: str | None = None, provider: str | None = None, threads: int = 0) -> Target:
    """Complete a device or a provider to a target; refuse two that do not belong together."""
    if device is not None and device not in DEVICES:
        raise ColdpressError(f"unknown device '{device}'", hint=_device_hint(device))
    if provider is None:
        return Target(device or "cpu", _DEFAULT_PROVIDER[device or "cpu"], threads)
    full = f"{provider.removesuffix(_SUFFIX)}{_SUFFIX}"
    if full not in PROVIDERS:
        hint = f"use {_SUCCESSORS[full]}" if full in _SUCCESSORS else _provider_hint(provider)
        raise ColdpressError(f"unknown execution provider '{provider}'", hint=hint)
    devices = PROVIDERS[full][0]
    if device is not None and device not in devices:
        raise ColdpressError(
            f"{full} does not run on device '{device}'",
            hint=f"use --device {' or '.join(devices)}, or --provider {_DEFAULT_PROVIDER[device]}",
        )
    return Target(device or devices[0], full, threads)


def _device_hint(device: str) -> str:
    """What was meant by a device that there is not: often that of a provider."""
    named = next((full for full in PROVIDERS if device.lower() in _short_names(full)), None)
    if named is None:
        return did_you_mean(device.lower(), DEVICES)
    return f"use --device {PROVIDERS[named][0][0]}; --provider {named} says what runs there"


def _provider_hint(provider: str) -> str:
    """The provider that was meant, compared without the ending that all of them share."""
    word = provider.lower().removesuffix(_SUFFIX.lower())
    names = {**_ALSO_CALLED, **{short: full for full in PROVIDERS for short in _short_names(full)}}
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    if close:
        return f"did you mean '{names[close[0]]}'?"
    return f"known: {', '.join(PROVIDERS)}"


def _short_names(provider: str) -> tuple[str, str]:
    return provider.removesuffix(_SUFFIX).lower(), PROVIDERS[provider][1]


def available_providers() -> tuple[str, ...]:
    """The execution providers of the installed ONNX Runtime; empty when it is not installed."""
    if find_spec("onnxruntime") is None:
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def physical_cores() -> int:
    """The processors this process may use (containers and affinity count), at least one."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


@cache
def processor() -> str:
    """The model of the processor, as the system tells it; its architecture where that is all that is known."""
    if sys.platform == "linux":
        names = ("model name", "Model")  # of x86; of boards with Arm processors
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines())
        found = next((value.strip() for name, _, value in lines if name.strip() in names), "")
    elif sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        found = asked.stdout.strip()
    else:
        found = platform.processor()
    return found or platform.machine()


def machine() -> dict[str, str | int]:
    """What a report says about the machine it was made on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "python": platform.python_version(),
        "cores": physical_cores(),
    }
