"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """A request that is not answered. ``param``: which key of it is wrong; ``code``: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def body_of(error: HTTPException) -> dict[str, Any]:
    """What a client gets to read."""
    status = error.status_code
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code, param = getattr(error, "code", None), getattr(error, "param", None)
    return {"error": {"message": error.detail, "type": kind, "param": param, "code": code}}


def response_to(error: HTTPException) -> JSONResponse:
    return JSONResponse(body_of(error), error.status_code, error.headers)
