"""The process that serves: an address, uvicorn, and an end that finishes what was begun."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.serving.catalog import Catalog
from coldpress.serving.http.app import make_app
from coldpress.serving.http.gate import Rules


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, catalog: Catalog):
        super().__init__(config)
        self._catalog = catalog

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers that were begun come to their end; a second one ends them."""
        for model in self._catalog.chat_models.values():
            model.scheduler.close()
        super().handle_exit(sig, frame)


def serve(catalog: Catalog, host: str, port: int, rules: Rules, ready: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; ``ready`` is told the address once it is open. ``port`` 0 takes a free one.

    Raises ColdpressError for an address that cannot be had.
    """
    with _opened(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(make_app(catalog, rules), log_level="warning", access_log=False, lifespan="off")
        server = _Server(config, catalog)
        with suppress(KeyboardInterrupt):  # the signal once more, after it was obeyed
            server.run(sockets=[listening])


def _opened(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        hint = "choose another --port, or 0 for a free one" if port else None
        raise ColdpressError(
            f"{host}:{port} cannot be opened: {error.strerror}", hint=hint, exit_code=WORK_FAILED
        ) from error
    # connections inherit it: without it each small piece of a stream waits 40 ms for the client's acknowledgement
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
