"""Completion in real shells: what TAB would put there."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: what stands on the line -> what completes it, and what does not
LINES = {
    "coldpress auto": ({"auto-opt"}, {"optimize"}),
    "coldpress auto-opt --precision i": ({"int4", "int8"}, {"fp32"}),
    "coldpress auto-opt --provider CU": ({"CUDAExecutionProvider"}, {"CPUExecutionProvider"}),
    "coldpress run-pass onnx_op": ({"onnx_opset_conversion"}, {"press"}),
    "coldpress evaluate m --metric perp": ({"perplexity"}, {"size"}),
    "coldpress show kq": (set(), {"press"}),
    "coldpress auto-opt mod": ({"models/"}, {"notes.txt"}),
    "coldpress chat models/o": ({"models/out/"}, {"notes.txt"}),
    "coldpress run note": ({"notes.txt"}, {"models/"}),
    "coldpress nonsense --x ": (set(), set()),
    "coldpress cache cl": ({"clean"}, {"gc"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models and notes, and with the command itself, as it is here."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "models/out").mkdir(parents=True)
    (folder / "notes.txt").write_text("")
    command = folder / "bin/coldpress"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m coldpress "$@"\n')
    command.chmod(0o755)
    return folder


def environment(place: Path) -> dict[str, str]:
    here = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {
        **here,
        "PATH": f"{place}/bin:{os.environ['PATH']}",
        "HOME": str(place),
        "HF_HUB_OFFLINE": "1",
        "TERM": "dumb",
    }


def typed(shell: list[str], setup: str, line: str, place: Path) -> str:
    """What a shell at a terminal shows after the line and two TABs: all that comes until it is what is wanted, and a
    moment longer."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(place)
        os.execvpe(shell[0], shell, environment(place))
    shown = b""

    def read_until(wanted: set[str], seconds: float) -> None:
        nonlocal shown
        end = time.monotonic() + seconds
        while not (wanted and all(one.encode() in shown for one in wanted)) and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    shown += os.read(terminal, 65536)
                except OSError:
                    return

    try:
        os.write(terminal, f"{setup}; echo re''ady\n".encode())
        read_until({"ready"}, 60)
        shown = b""
        os.write(terminal, f"{line}\t\t".encode())
        read_until(LINES[line][0], 30 if LINES[line][0] else 5)
        read_until(set(), 0.5)
        return shown.decode(errors="replace")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


def in_bash(line: str, place: Path) -> str:
    setup = "source <(coldpress completion bash); bind 'set show-all-if-ambiguous on'"
    return typed(["bash", "--norc", "--noprofile", "-i"], setup, line, place)


def in_zsh(line: str, place: Path) -> str:
    setup = "autoload -Uz compinit && compinit -u; source <(coldpress completion zsh)"
    return typed(["zsh", "-f", "-i"], setup, line, place)


def in_fish(line: str, place: Path) -> str:
    script = f"coldpress completion fish | source; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        **{"cwd": place, "env": environment(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("shell", [in_bash, in_zsh, in_fish], ids=["bash", "zsh", "fish"])
@pytest.mark.parametrize("line", LINES)
def test_a_shell_completes(shell, line, place, request):
    name = shell.__name__.removeprefix("in_")
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    shown = shell(line, place)
    wanted, others = LINES[line]
    word = line.split()[-1]
    completed = shown.replace(line, word) if name != "fish" else shown
    for one in wanted:
        assert one in completed, shown
    for one in others - {word}:
        assert one not in completed, shown
    assert "Traceback" not in shown and "error:" not in shown
