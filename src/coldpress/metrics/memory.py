"""How much memory a chat model takes to load and to answer, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from coldpress import environment
from coldpress.data.texts import heldout
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.model import Model
from coldpress.models.onnx_folder import read_genai_config
from coldpress.parts import Context, Metric, Value
from coldpress.serving.engine import Engine, Sampling, fitting

_POLL_S = 0.005
_MB = 1e6


@dataclass(frozen=True)
class Memory(Metric):
    """Peak memory of a fresh Python process that loads the model and generates.

    ``peak_memory_mb`` is the resident set, with Python, the runtime and mapped files. ``peak_anonymous_mb`` leaves out
    mapped files, which the system can drop at any time; it is polled every 5 ms, and None where the system does not
    tell (only Linux does).
    """

    prompt_tokens: int = field(default=256, metadata={"help": "length of the prompt, taken from held-out text"})
    new_tokens: int = field(default=32, metadata={"help": "tokens generated after the prompt"})

    values: ClassVar[Mapping[str, Value]] = {
        "peak_memory_mb": Value("lower", "MB"),
        "peak_anonymous_mb": Value("lower", "MB"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime-genai", "psutil")

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        if not read_genai_config(model.path):
            raise ColdpressError(f"no genai_config.json in {model.path}, so onnxruntime-genai cannot run it")
        numbers = [self.prompt_tokens, self.new_tokens, ctx.target.thread_count, int(not ctx.target.is_here)]
        command = [sys.executable, "-m", "coldpress.metrics.memory", str(model.path.resolve()), *map(str, numbers)]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:  # a pipe could fill up and stop the child
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment.of_child()
            )
            anonymous = _watch(child)
            output, _ = child.communicate()
            errors.seek(0)
            said = errors.read().strip()[-500:]
        if child.returncode:
            message = f"the process that measures memory ended with {child.returncode}: {said}"
            raise ColdpressError(message, exit_code=WORK_FAILED)
        peak = json.loads(output.splitlines()[-1])["peak_bytes"]
        return {
            "peak_memory_mb": peak / _MB,
            "peak_anonymous_mb": None if anonymous is None else anonymous / _MB,
            "new_tokens": self.new_tokens,
        }


def _watch(child: subprocess.Popen[str]) -> int | None:
    """The highest anonymous memory in bytes seen until the child ends."""
    highest = None
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        seen = _status_bytes(status, "RssAnon")
        if seen is not None:
            highest = max(seen, highest or 0)
        time.sleep(_POLL_S)
    return highest


def _status_bytes(status: Path, name: str) -> int | None:
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _own_peak_bytes() -> int:
    """This process's peak resident set. ``ru_maxrss`` would be inherited from the parent on Linux."""
    high_water = _status_bytes(Path("/proc/self/status"), "VmHWM")
    if high_water is not None:
        return high_water
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _load_and_generate(folder: Path, prompt_tokens: int, new_tokens: int, threads: int, on_cpu: bool) -> None:
    prompt_tokens, new_tokens = fitting(read_genai_config(folder)["model"], prompt_tokens, new_tokens)
    prompt = heldout.windows(folder, max(8, prompt_tokens), 1)[0][:prompt_tokens]
    engine = Engine(folder, threads, on_cpu=on_cpu)
    engine.generate([int(token) for token in prompt], Sampling(new_tokens), past_stop_tokens=True).finished()


if __name__ == "__main__":
    _load_and_generate(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "1")
    print(json.dumps({"peak_bytes": _own_peak_bytes()}))
