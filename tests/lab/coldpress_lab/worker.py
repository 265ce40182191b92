"""What happens in the process that measures: it tells of itself, fails in several ways, or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from coldpress import ColdpressError, Context, Metric, Model, Value

_earlier: list[int] = []


@dataclass(frozen=True)
class Worker(Metric):
    """``does``: tell, mutter, refuse, break, die, interrupt, hang, with a child, or wait until ``place``.go is there."""

    does: str = field(default="tell", metadata={"help": "what it does"})
    place: str = field(default="", metadata={"help": "a file where it notes on which node it began to wait"})
    number: int = field(default=0, metadata={"help": "makes one job another"})

    values: ClassVar[Mapping[str, Value]] = {"pid": Value("neither"), "earlier": Value("neither")}
    accepts: ClassVar[tuple[str, ...]] = ("onnx",)

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        ctx.progress("working", 1, 2)
        if self.does == "mutter":
            print('{"coldpress"', "some library has something to say", flush=True)
        if self.does == "refuse":
            raise ColdpressError("not this model", hint="another one")
        if self.does == "break":
            raise ValueError("it broke in there")
        if self.does == "die":
            print("the last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "hang":
            child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
            Path(os.environ["COLDPRESS_LAB_WISH"]).write_text(f"{os.getpid()} {child.pid}")
            child.wait()
        if self.does == "wait":
            with Path(self.place).open("a") as account:
                account.write(f"{os.environ['COLDPRESS_CACHE']}\n")
            while not Path(f"{self.place}.go").exists():
                time.sleep(0.05)
        if self.does == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        _earlier.append(self.number)
        wish = os.environ.get("COLDPRESS_LAB_WISH", "")
        told = {"wish": wish, "path": os.environ["PATH"], "token": os.environ.get("HF_TOKEN", "")}
        told |= {"folder": str(Path.cwd()), "waits": os.environ.get("OMP_WAIT_POLICY")}
        return {"pid": os.getpid(), "earlier": len(_earlier) - 1, **told}
