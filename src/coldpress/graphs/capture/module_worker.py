"""A process of its own that runs the user's script and exports its module: what that prints, leaks or never ends stays
in there.

``export`` asks it and waits. The answer comes in a file, so that a script may print whatever it likes.
"""

from __future__ import annotations

import faulthandler
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from coldpress import environment
from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.model import Model

_LINES = 12


def export(model: Model, request: Mapping[str, Any], scratch: Path, seconds: float) -> dict[str, Any]:
    """Let a process export a module; ``request``: ``options`` of the module, ``precision``.

    Gives what was learned of it: ``name``, ``weights``, ``remarks``. The graph lies below ``scratch`` then, as
    ``model.onnx``. ColdpressError for what went wrong there, and where the script does not end in ``seconds``.
    """
    work = scratch / ".export"
    work.mkdir()
    asked = {**request, "path": str(model.path), "format": model.format, "output": str(scratch), "seconds": seconds}
    (work / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    with (work / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "coldpress.graphs.capture.module_worker", str(work)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment.of_child(),
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    answer = _answer(model, work, code, seconds)
    for file in sorted(work.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    work.rmdir()
    if "error" in answer:
        raise ColdpressError(answer["error"], hint=answer["hint"], exit_code=answer["exit_code"])
    return answer


def _answer(model: Model, work: Path, code: int, seconds: float) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((work / "answer.json").read_text(encoding="utf-8"))
        return found
    said = (work / "said").read_text(encoding="utf-8", errors="replace").strip()
    hung = (work / "hung").read_text(encoding="utf-8", errors="replace") if (work / "hung").is_file() else ""
    if hung.strip():
        line = re.search(rf'File "({re.escape(str(model.path.resolve()))})", line (\d+) in (\w+)', hung)
        where = f" in line {line[2]}, in {line[3]}()" if line else ""
        raise ColdpressError(
            f"your script {model.path} did not end within {seconds:g} s: it is still{where or ' at work'}",
            hint="what waits for a network, an input or a lock waits forever here; the pass"
            " onnx_conversion has script_seconds, which allow more time",
            exit_code=WORK_FAILED,
        )
    tail = "\n  ".join(said.splitlines()[-_LINES:])
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise ColdpressError(
        f"the process that ran {model.path} {ended}{tail and chr(10) + '  ' + tail}",
        hint="was there too little memory? a script must not end the process",
        exit_code=WORK_FAILED,
    )


def main(work: Path) -> dict[str, Any]:
    """Do a request, and say what was learned of the module."""
    request = json.loads((work / "request.json").read_text(encoding="utf-8"))
    with (work / "hung").open("w") as hung:
        faulthandler.dump_traceback_later(request["seconds"], exit=True, file=hung)
        from coldpress.graphs.capture.module import ModuleOptions, open_module
        from coldpress.parts import schema

        options = schema.build(ModuleOptions, request["options"])
        module = open_module(Model(Path(request["path"]), request["format"], ""), options)
        faulthandler.cancel_dump_traceback_later()
    from coldpress.graphs.capture.module_export import exported
    from coldpress.models.onnx_graphs import save_graph

    graph = exported(module, request["precision"], work)
    graph.graph.name, graph.producer_name, graph.producer_version = "model", "coldpress", ""
    save_graph(graph, Path(request["output"]) / "model.onnx")
    return {"name": module.name, "weights": _weights(module.network), "remarks": _remarks(graph.graph, module)}


def _weights(network: Any) -> int:
    return sum(one.numel() for one in network.parameters())


def _remarks(graph: Any, module: Any) -> list[str]:
    """What was found of the axes, where nobody had said it."""
    if module.declared:
        return []
    shapes = {str(value.name): [str(size) for size in value.shape] for value in graph.inputs}
    told = ", ".join(f"{name} [{', '.join(sizes)}]" for name, sizes in shapes.items())
    return [f"The module takes {told}: the named axes are open, as trials found; dynamic_axes of an io_config say it."]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        result = main(folder)
    except ColdpressError as error:
        result = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    (folder / "answer.json").write_text(json.dumps(result), encoding="utf-8")
