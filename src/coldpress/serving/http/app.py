"""The server's paths: OpenAI's under /v1, a page to chat in at /, /health and /metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from coldpress.errors import ColdpressError
from coldpress.serving.catalog import Catalog, Served
from coldpress.serving.encoder import Encoder
from coldpress.serving.http.answers import Exchange, Piece
from coldpress.serving.http.asked import chat_questions, completion_questions, exchange_of, rows_to_embed
from coldpress.serving.http.errors import ApiError, response_to
from coldpress.serving.http.gate import App, Gate, Rules
from coldpress.serving.http.measures import Measures
from coldpress.serving.http.replies import Reply
from coldpress.serving.http.requests import ChatRequest, CompletionRequest, EmbeddingRequest, refusal

T = TypeVar("T")

_PAGE = Path(__file__).with_name("page.html")
_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
}
_CLIENT_GONE = 499


def make_app(catalog: Catalog, rules: Rules) -> App:
    """The whole server, as an ASGI app."""
    app = FastAPI(title="coldpress", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    measures = Measures(catalog)
    _tell_errors(app)
    _add_state(app, catalog, measures)
    _add_models(app, catalog)
    _add_answers(app, catalog, measures)
    _add_embeddings(app, catalog, measures)
    return Gate(app, rules, measures)


def _tell_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return response_to(error)

    @app.exception_handler(ColdpressError)
    async def failed(request: Request, error: ColdpressError) -> Response:
        return response_to(ApiError(500, error.message))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return response_to(refusal(list(error.errors()), _BODIES.get(request.url.path)))


def _add_state(app: FastAPI, catalog: Catalog, measures: Measures) -> None:
    page = _PAGE.read_text(encoding="utf-8")
    allowed = {kind: _hash_of(page, kind) for kind in ("script", "style")}
    policy = "; ".join(["default-src 'self'", *(f"{kind}-src '{digest}'" for kind, digest in allowed.items())])

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    @app.get("/health")
    async def health() -> Response:
        closing = any(model.scheduler.is_closing for model in catalog.chat_models.values())
        return JSONResponse({"status": "closing" if closing else "ok"}, 503 if closing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _hash_of(page: str, kind: str) -> str:
    """What a browser has to find a page's own script or style to be."""
    found = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
    assert found is not None, kind
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


def _add_models(app: FastAPI, catalog: Catalog) -> None:
    def entry(one: Served) -> dict[str, Any]:
        head = {"id": one.name, "object": "model", "created": catalog.created, "owned_by": "coldpress"}
        kind = "embeddings" if isinstance(one.model, Encoder) else "chat"
        return {**head, "parent": one.parent, "kind": kind, "max_model_len": one.model.length}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry(one) for one in catalog.served.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in catalog.served:
            raise ApiError(404, f"there is no model '{name}' here", param="model", code="model_not_found")
        return entry(catalog.served[name])


def _add_answers(app: FastAPI, catalog: Catalog, measures: Measures) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        model, questions = await asyncio.to_thread(chat_questions, catalog, body)
        return await answered(exchange_of(model, questions, body), body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        model, questions = await asyncio.to_thread(completion_questions, catalog, body)
        return await answered(exchange_of(model, questions, body), body, request)

    async def answered(exchange: Exchange, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        reply = Reply(body.model, isinstance(body, ChatRequest))
        if not body.stream:
            try:
                await _unless_gone(request, exchange.finished())
            finally:
                exchange.close()
                count(exchange, body.model)
            return JSONResponse(reply.whole(exchange))
        pieces = await _begun(exchange)
        lines = counted(reply.stream(exchange, pieces, body.stream_options.include_usage), exchange, body.model)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def counted(lines: AsyncIterator[bytes], exchange: Exchange, model: str) -> AsyncIterator[bytes]:
        try:
            async for line in lines:
                yield line
        finally:
            exchange.close()
            count(exchange, model)

    def count(exchange: Exchange, model: str) -> None:
        measures.prompt_tokens.labels(model).inc(exchange.prompt_tokens)
        measures.generated_tokens.labels(model).inc(exchange.generated_tokens)
        if exchange.first_token_s is not None:
            measures.first_token.labels(model).observe(exchange.first_token_s)


async def _begun(exchange: Exchange) -> AsyncIterator[Piece]:
    """The pieces of an exchange once there is a first one: what goes wrong before is an error, not a stream."""
    pieces = aiter(exchange)
    first = await anext(pieces)

    async def all_of_them() -> AsyncIterator[Piece]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()


def _add_embeddings(app: FastAPI, catalog: Catalog, measures: Measures) -> None:
    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest) -> Response:
        encoder, rows = await asyncio.to_thread(rows_to_embed, catalog, body)
        vectors = await asyncio.to_thread(encoder.embed, rows)
        tokens = sum(map(len, rows))
        measures.prompt_tokens.labels(body.model).inc(tokens)
        as_text = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
            }
            for place, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of work, which ends with the client that waits for it."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(_CLIENT_GONE, "the client has gone")
    finally:
        gone.cancel()
        task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
