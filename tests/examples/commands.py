"""The commands that a page tells its reader to type, and those that make would run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

Command = list[str]


def of_page(name: str, part: str = "") -> list[Command]:
    """The commands in the bash blocks of an example's README; those of the section ``part`` alone, if one is named."""
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    if part:
        [text] = re.findall(rf"^## {part}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    return parsed("\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)))


def of_make(target: str, *variables: str) -> list[Command]:
    """What ``make target`` would type, in a checkout that is set up, without its care for folders and repetitions."""
    call = ["make", "--dry-run", "--assume-old=setup", "--no-print-directory", target, *variables]
    typed = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = (command[command.index("&&") + 1 :] for command in parsed(typed))
    return [[word for word in one if word != "--overwrite" and not word.startswith("PATH=")] for one in words]


def option(command: Command, name: str) -> str:
    return command[command.index(name) + 1]


def template(name: str, part: str) -> str:
    """The text template that the page trains with."""
    [command] = [one for one in of_page(name, part) if "--text_template" in one]
    return option(command, "--text_template")


def parsed(text: str) -> list[Command]:
    """Lines of a shell as words."""
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
