"""From requests to questions: prompts as tokens, room for answers, what they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coldpress.errors import ColdpressError
from coldpress.serving.catalog import Catalog, ChatModel, Served
from coldpress.serving.encoder import Encoder
from coldpress.serving.engine import GREEDY, Grammar, Sampling, json_grammar
from coldpress.serving.http.answers import Choice, Exchange
from coldpress.serving.http.calls import grammar_of_calls, told
from coldpress.serving.http.errors import ApiError
from coldpress.serving.http.requests import ChatRequest, CompletionRequest, EmbeddingRequest, NamedTool, Tool
from coldpress.serving.scheduler import Question
from coldpress.serving.text import Text

_ANY_OBJECT = json_grammar({"type": "object"})


def chat_questions(catalog: Catalog, request: ChatRequest) -> tuple[ChatModel, list[Question]]:
    """A question for each choice that a chat asks for."""
    served, model = _chat_model(catalog, request.model)
    tools = _tools(request)
    if tools and "tools" not in model.template:
        raise ApiError(400, f"the chat template of '{served.name}' has no place for tools", param="tools",
                       code="unsupported_parameter")  # fmt: skip
    messages = [message.plain for message in request.messages]
    try:
        ids = model.chat_ids(messages, told(tools) if tools else None)
    except ValueError as error:
        raise ApiError(
            400, f"'{served.name}' cannot be asked that: {error}", code="invalid_value", param="messages"
        ) from error
    wanted = request.max_completion_tokens or request.max_tokens
    return model, _questions(served, model, [ids], request, wanted, _grammar(request, tools))


def completion_questions(catalog: Catalog, request: CompletionRequest) -> tuple[ChatModel, list[Question]]:
    """A question for each choice of each text."""
    served, model = _chat_model(catalog, request.model)
    try:
        prompts = [model.text_ids(one) if isinstance(one, str) else one for one in request.prompts]
    except ValueError as error:
        raise ApiError(
            400, f"'{served.name}' cannot be asked that: {error}", code="invalid_value", param="prompt"
        ) from error
    size = model.engine.settings["vocab_size"]
    if any(token >= size for ids in prompts for token in ids):
        raise ApiError(400, f"'{served.name}' has no tokens from {size} on", param="prompt", code="invalid_value")
    return model, _questions(served, model, prompts, request, request.max_tokens, None)


def exchange_of(model: ChatModel, questions: Sequence[Question], request: ChatRequest | CompletionRequest) -> Exchange:
    """Have them answered."""
    tools = [tool.function.name for tool in _tools(request)] if isinstance(request, ChatRequest) else []
    choices = [Choice(place, Text(model.decoder(), request.stops), tools) for place in range(len(questions))]
    return Exchange(model, questions, choices)


def rows_to_embed(catalog: Catalog, request: EmbeddingRequest) -> tuple[Encoder, list[list[int]]]:
    """The texts of a request as tokens."""
    served = _found(catalog, request.model)
    if not isinstance(served.model, Encoder):
        raise ApiError(400, f"'{served.name}' gives no vectors", param="model", code="wrong_kind_of_model")
    encoder = served.model
    rows = [encoder.ids(one) if isinstance(one, str) else one for one in request.inputs]
    for token in (token for row in rows for token in row if not 0 <= token < encoder.vocabulary):
        raise ApiError(400, f"'{served.name}' has no token {token}, but {encoder.vocabulary} from 0 on", param="input")
    longest = max(map(len, rows))
    if longest > encoder.length:
        raise _too_long(f"a text has {longest} tokens, '{served.name}' takes {encoder.length}", "input")
    return encoder, rows


def _found(catalog: Catalog, name: str) -> Served:
    try:
        return catalog.find(name)
    except ColdpressError as error:
        raise ApiError(404, f"{error.message}; {error.hint}", param="model", code="model_not_found") from error


def _chat_model(catalog: Catalog, name: str) -> tuple[Served, ChatModel]:
    served = _found(catalog, name)
    if not isinstance(served.model, ChatModel):
        raise ApiError(400, f"'{served.name}' generates no text", param="model", code="wrong_kind_of_model")
    return served, served.model


def _questions(
    served: Served,
    model: ChatModel,
    prompts: Sequence[list[int]],
    request: ChatRequest | CompletionRequest,
    wanted: int | None,
    grammar: Grammar | None,
) -> list[Question]:
    found = []
    for ids in prompts:
        sampling = replace(_sampling(model, request), max_new_tokens=_room(model, len(ids), wanted))
        for turn in range(request.n):
            seed = None if sampling.seed is None else sampling.seed + turn
            found.append(Question(ids, replace(sampling, seed=seed), served.adapter, grammar))
    return found


def _sampling(model: ChatModel, request: ChatRequest | CompletionRequest) -> Sampling:
    given = request.drawn
    return replace(GREEDY if given.get("temperature") == 0 else model.sampling, **given)  # type: ignore[arg-type]


def _room(model: ChatModel, prompt_tokens: int, wanted: int | None) -> int:
    """How long an answer may be: as it is asked for, else as long as the server and the context allow."""
    left = model.length - prompt_tokens
    if prompt_tokens == 0:
        raise ApiError(400, "the prompt has no tokens", code="invalid_value")
    if left <= 0 or (wanted or 0) > left:
        asked = f" and {wanted} of an answer" if wanted else ""
        raise _too_long(f"the prompt has {prompt_tokens} tokens{asked}, the model's context {model.length}", "messages")
    return wanted or min(left, model.limits.max_new_tokens)


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="context_length_exceeded", param=param)


def _tools(request: ChatRequest) -> list[Tool]:
    """Those that may be called."""
    choice = request.tool_choice
    if choice == "none":
        return []
    if not isinstance(choice, NamedTool):
        if choice == "required" and not request.tools:
            raise ApiError(400, "tool_choice is 'required', and there are no tools", param="tool_choice")
        return request.tools
    named = [tool for tool in request.tools if tool.function.name == choice.function.name]
    if not named:
        raise ApiError(400, f"there is no tool '{choice.function.name}'", param="tool_choice")
    return named


def _grammar(request: ChatRequest, tools: Sequence[Tool]) -> Grammar | None:
    """What the answer is held to."""
    wanted = request.response_format
    if tools and request.tool_choice != "auto":
        return grammar_of_calls(tools)
    if wanted.json_schema is not None:
        return json_grammar(wanted.json_schema.schema_)
    return _ANY_OBJECT if wanted.type == "json_object" else None
