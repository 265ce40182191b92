"""``python -m coldpress``."""

from coldpress.cli import main

main()
