"""What may be asked for: the bodies of requests, checked. A key that would change an answer and cannot is refused."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import ErrorDetails

from coldpress.errors import did_you_mean
from coldpress.serving.http.errors import ApiError

#: keys that change no answer of ours, whatever they say
_ABOUT_THE_CALLER = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store"}
#: keys that may be there as long as they ask for nothing, by what asks for nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
_REASONS = {
    "frequency_penalty": "use repetition_penalty",
    "presence_penalty": "use repetition_penalty",
    "logit_bias": "onnxruntime-genai takes none",
    "logprobs": "probabilities are not given back",
    "top_logprobs": "probabilities are not given back",
    "parallel_tool_calls": "a model decides itself how many calls it makes",
    "modalities": "answers are texts",
    "echo": "a prompt is not repeated",
    "best_of": "use n",
    "suffix": "a text is continued at its end only",
    "dimensions": "vectors have the length that the model gives them",
    "reasoning_effort": "use the words of the model's chat template",
}
#: parts of a place in a body; others are pydantic's names of types
_KEY = re.compile(r"(?!body$|str$|list$|int$)\w+")
_MOST_CHOICES, _MOST_STOPS, _MOST_TEXTS = 8, 4, 2048
_SEEDS = 1 << 31

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Body(_Shape):
    model: Text

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None and not _asks_for_nothing(key, value)}


def _asks_for_nothing(key: str, value: object) -> bool:
    return key in _ABOUT_THE_CALLER or any(value == one for one in _NEUTRAL.get(key, ()))


class StreamOptions(_Shape):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Generating(_Body):
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = None
    n: int = Field(1, ge=1, le=_MOST_CHOICES)
    stop: Text | Annotated[list[Text], Field(max_length=_MOST_STOPS)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def drawn(self) -> dict[str, float]:
        """The settings of sampling that were given, by their names here."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
        seed = {} if self.seed is None else {"seed": self.seed % _SEEDS}
        return {name: value for name, value in given.items() if value is not None} | seed


class CompletionRequest(_Generating):
    """A text, or several, to be continued."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=128)]
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[return-value]


class Part(_Shape):
    type: Literal["text"]
    text: str


class FunctionCall(_Shape):
    name: Text
    arguments: str

    @property
    def plain(self) -> dict[str, Any]:
        """As chat templates have it: with arguments as an object."""
        try:
            return {"name": self.name, "arguments": json.loads(self.arguments)}
        except ValueError:
            return {"name": self.name, "arguments": self.arguments}


class ToolCall(_Shape):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """As chat templates have it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        role = "system" if self.role == "developer" else self.role
        calls = [{"id": call.id, "type": call.type, "function": call.function.plain} for call in self.tool_calls or ()]
        others = {"name": self.name, "tool_call_id": self.tool_call_id, "tool_calls": calls}
        return {"role": role, "content": content, **{key: value for key, value in others.items() if value}}


class Function(_Shape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


class Tool(_Shape):
    type: Literal["function"]
    function: Function


class _Named(_Shape):
    name: Text


class NamedTool(_Shape):
    type: Literal["function"]
    function: _Named


class Schema(_Shape):
    name: Text
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Shape):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and the type needs one")
        return self


class ChatRequest(_Generating):
    """A chat that awaits an answer."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat = ResponseFormat()
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"


class EmbeddingRequest(_Body):
    """Texts whose vectors are asked for."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=_MOST_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def inputs(self) -> list[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input  # type: ignore[return-value]


def refusal(errors: list[ErrorDetails], shape: type[BaseModel] | None) -> ApiError:
    """What is wrong with a body, by pydantic's findings; of a choice of types the one that came closest."""
    first = max(errors, key=lambda one: len(one["loc"])) if errors else None
    if first is None:
        return ApiError(400, "the body is not as it should be")
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _KEY.fullmatch(part))
    name = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = list(shape.model_fields) if shape is not None and place == name else []
        reason = _REASONS.get(name) or (did_you_mean(name, known) if known else "leave it out")
        return ApiError(400, f"'{place}' is not available here: {reason}", code="unsupported_parameter", param=place)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    message = f"{place or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return ApiError(400, message, code="invalid_value", param=place or None)
