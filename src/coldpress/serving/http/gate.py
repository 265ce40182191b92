"""What stands before every request: the key, the size of bodies, the patience with readers, and the count."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from coldpress.serving.http.errors import ApiError, response_to
from coldpress.serving.http.measures import Measures

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_GUARDED = "/v1/"
#: where the environment says what key is asked for
KEY_VARIABLE = "COLDPRESS_API_KEY"


@dataclass(frozen=True)
class Rules:
    """``api_key``: what /v1 asks for; None: nothing. ``largest_body``: bytes. ``patience_s``: how long a reader may
    take nothing before its answer ends."""

    api_key: str | None = None
    largest_body: int = 1 << 22
    patience_s: float = 60.0


def rules_here() -> Rules:
    """Those of a server whose environment may have a key."""
    return Rules(os.environ.get(KEY_VARIABLE) or None)


class Gate:
    """ASGI around an app."""

    def __init__(self, app: App, rules: Rules, measures: Measures):
        self._app, self._rules, self._measures = app, rules, measures

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = self._watched(scope, send)
        try:
            self._check_key(scope)
            await self._app(scope, self._measured(receive), watched)
        except ApiError as error:
            await response_to(error)(scope, receive, watched)
        except asyncio.TimeoutError:  # a reader that takes nothing: the connection is given up
            return

    def _check_key(self, scope: Message) -> None:
        wanted = self._rules.api_key
        if wanted is None or not scope["path"].startswith(_GUARDED):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {wanted}".encode()):
            raise ApiError(401, "the API key is wrong or missing", code="invalid_api_key",
                           headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    def _measured(self, receive: Receive) -> Receive:
        """Refuse a body as soon as it is too large."""
        most, seen = self._rules.largest_body, 0

        async def measured() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise ApiError(413, f"a body has at most {most} bytes", code="body_too_large")
            return message

        return measured

    def _watched(self, scope: Message, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "other")
                self._measures.requests.labels(path, str(message["status"])).inc()
            await asyncio.wait_for(send(message), self._rules.patience_s)

        return watched
