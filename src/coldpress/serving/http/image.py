"""What the image of a package starts: serves the folder ``model`` of the working folder on all addresses.

``python -m coldpress.serving.http.image NAME``; the port is $PORT or 8000.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from coldpress.serving.catalog import Catalog, Limits
from coldpress.serving.http.gate import rules_here
from coldpress.serving.http.server import serve


def main(name: str) -> None:
    """Serve until SIGTERM."""
    catalog = Catalog()
    catalog.add(name, Path("model"), Limits())
    port = int(os.environ.get("PORT", "8000"))
    serve(catalog, "0.0.0.0", port, rules_here(), lambda address: print(f"serving {name} at {address}", flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
