"""``optimize``: the newer name of ``auto-opt``, with the same options."""

from __future__ import annotations

from coldpress.cli import VERBS
from coldpress.cli.auto_opt import command as auto_opt
from coldpress.cli.options import Several

command = Several("optimize", params=auto_opt.params, callback=auto_opt.callback, help=VERBS["optimize"])
