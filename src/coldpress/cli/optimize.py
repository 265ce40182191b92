"""``optimize``: the newer name of ``auto-opt``, with the same options."""

from __future__ import annotations

import click

from coldpress.cli import VERBS
from coldpress.cli.auto_opt import command as auto_opt

command = click.Command("optimize", params=auto_opt.params, callback=auto_opt.callback, help=VERBS["optimize"])
