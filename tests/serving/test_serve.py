"""``coldpress serve`` as OpenAI's own client meets it, over a real socket; and what it does with everybody else."""

from __future__ import annotations

import base64
import http.client
import json
import random
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from coldpress.cli import app
from coldpress.errors import ColdpressError
from coldpress.serving.chat import Conversation, model_folder
from coldpress.serving.engine import Engine, Sampling
from tests import waiting
from tests.serving.conftest import KEY, serving

openai = pytest.importorskip("openai")

CHAT = "org/модель"
NAMES = [CHAT, *(f"{CHAT}:a{rank}" for rank in range(1, 5))]
QUESTION = "where shall we go?"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rom", "Oslo"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def answers(with_adapters: Path) -> dict[str, str]:
    """What the chat says, by the names that the server has for what answers there."""
    folder = model_folder(with_adapters)
    engine = Engine(folder, 1, {f"a{rank}": folder / f"a{rank}.onnx_adapter" for rank in range(1, 5)})
    said = {}
    for name in NAMES:
        adapter = name.partition(":")[2] or None
        said[name] = "".join(Conversation(engine, sampling=Sampling(16), adapter=adapter).ask(QUESTION))
    assert len(set(said.values())) == 5
    return said


def ask(client: Any, name: str = CHAT, **more: Any) -> Any:
    request = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0, **more}
    return client.chat.completions.create(model=name, **request)


def said(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def post(address: str, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
    connection.request("POST", path, body, given)
    response = connection.getresponse()
    return response.status, response.read()


def test_models_are_listed_with_their_adapters_and_found_by_name(client):
    found = {one.id: one for one in client.models.list()}
    assert set(found) == {*NAMES, "tools", "words"}
    assert found[f"{CHAT}:a2"].parent == CHAT and found[CHAT].max_model_len == 2048
    assert client.models.retrieve(CHAT).id == CHAT
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


@pytest.mark.parametrize("name", NAMES)
def test_each_adapter_answers_as_in_a_chat_whole_or_streamed(client, answers, name):
    whole = ask(client, name)
    assert whole.choices[0].message.content == answers[name]
    chunks = list(ask(client, name, stream=True, stream_options={"include_usage": True}))
    assert said(chunks) == answers[name]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens + whole.usage.completion_tokens == whole.usage.total_tokens
    assert whole.usage.prompt_tokens == 3 + len(QUESTION)  # a token for each byte, and those of the template


def test_many_clients_get_the_answers_of_their_adapters(client, answers):
    asked = [(NAMES[place % 5], place % 2 == 0) for place in range(20)]

    def answer(one: tuple[str, bool]) -> str:
        found = ask(client, one[0], stream=one[1])
        return said(found) if one[1] else found.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, asked)) == [answers[name] for name, _ in asked]


def test_an_adapter_alone_in_its_name_needs_no_model_in_front(client, answers):
    assert ask(client, "a3").choices[0].message.content == answers[f"{CHAT}:a3"]


def test_an_answer_ends_at_a_stop_which_is_not_shown(client, answers):
    whole = answers[CHAT]
    stop = whole[1:3]
    for stops in (stop, ["\u2400", stop]):
        found = ask(client, stop=stops)
        assert found.choices[0].message.content == whole[: whole.index(stop)]
        assert found.choices[0].finish_reason == "stop"
        assert said(ask(client, stop=stops, stream=True)) == whole[: whole.index(stop)]


def test_several_choices_are_drawn_by_seeds(client):
    def drawn(seed: int, **more: Any) -> list[str]:
        found = ask(client, n=3, temperature=1.9, seed=seed, max_tokens=24, **more)
        return [choice.message.content for choice in found.choices]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 3
    streamed = ["", "", ""]
    for chunk in ask(client, n=3, temperature=1.9, seed=1, max_tokens=24, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == drawn(1)


def test_texts_are_continued_as_the_engine_does_it(client, with_adapters):
    engine = Engine(model_folder(with_adapters), 1)
    expected = []
    for ids in ([40, 41], [90]):
        decoder = engine.tokenizer().create_stream()
        expected.append("".join(map(decoder.decode, engine.generate(ids, Sampling(16)).finished().tokens)))
    assert any(expected)
    request = {"model": CHAT, "max_tokens": 16, "temperature": 0}
    found = client.completions.create(prompt=[[40, 41], [90]], **request)
    assert [choice.text for choice in found.choices] == expected
    assert found.usage.prompt_tokens == 3
    chunks = client.completions.create(prompt=[40, 41], stream=True, **request)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected[0]
    assert client.completions.create(prompt="ab", **request).usage.prompt_tokens == 2


def test_vectors_are_those_of_the_model_as_numbers_and_as_bytes(client, address, table):
    texts = ["the sea", "blue", "the sea is wide and blue"]
    found = client.embeddings.create(model="words", input=texts)
    words = {"the": 4, "sea": 5, "is": 6, "wide": 7, "and": 8, "blue": 9}
    rows = [[2, *(words[word] for word in text.split()), 3] for text in texts]
    expected = np.stack([table[row].mean(0) for row in rows])
    np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-6)
    assert found.usage.prompt_tokens == sum(map(len, rows))
    body = {"model": "words", "input": rows[0], "encoding_format": "base64"}
    status, answer = post(address, json.dumps(body).encode(), "/v1/embeddings")
    held = base64.b64decode(json.loads(answer)["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(held, "<f4"), expected[0], atol=1e-6)
    assert status == 200
    with pytest.raises(openai.BadRequestError, match="18 tokens, 'words' takes 16"):
        client.embeddings.create(model="words", input="sea " * 16)
    for token in (999, 2**40):
        with pytest.raises(openai.BadRequestError, match=f"'words' has no token {token}"):
            client.embeddings.create(model="words", input=[4, token])
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        ask(client, "words")
    with pytest.raises(openai.BadRequestError, match="gives no vectors"):
        client.embeddings.create(model="tools", input="sea")


def test_answers_are_held_to_a_schema(client):
    schema = {"type": "object", "properties": {"mood": {"enum": ["joy", "fear"]}}, "required": ["mood"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema}}
    found = ask(client, response_format=wanted, max_tokens=40).choices[0]
    assert json.loads(found.message.content)["mood"] in ("joy", "fear") and found.finish_reason == "stop"
    wanted["json_schema"]["schema"] = {"type": "nonsense"}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="nonsense"):
            ask(client, response_format=wanted, stream=stream)


def test_tools_are_called_with_arguments_that_fit(client):
    chat = [{"role": "user", "content": QUESTION}]
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = ask(client, "tools", tools=[TOOL], tool_choice=choice, max_tokens=80).choices[0]
        [call] = found.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "weather" and found.finish_reason == "tool_calls"
        assert arguments["city"] in ("Rom", "Oslo") and arguments["days"] in (1, 2)
    chunks = list(ask(client, "tools", tools=[TOOL], tool_choice="required", max_tokens=80, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.tool_calls[0].function.arguments for delta in deltas if delta.tool_calls] == [call.function.arguments]
    chat += [found.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert ask(client, "tools", messages=chat, tools=[TOOL]).usage.prompt_tokens > 100
    assert ask(client, "tools", tools=[TOOL], tool_choice="none").usage.prompt_tokens == 3 + len(QUESTION)
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        ask(client, tools=[TOOL])
    with pytest.raises(openai.BadRequestError, match="there is no tool 'wether'"):
        ask(client, "tools", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "wether"}})


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"name": "org/model"}, "NotFoundError", "there is no model 'org/model'"),
        ({"name": f"{CHAT}:a9"}, "NotFoundError", f"did you mean '{CHAT}:a"),
        ({"max_tokens": 2048}, "BadRequestError", "the model's context 2048"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "BadRequestError", "the prompt has 3003 tokens"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "BadRequestError", "NUL"),
        ({"messages": []}, "BadRequestError", "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "BadRequestError", "messages.0.content.0"),
        ({"logprobs": True}, "BadRequestError", "'logprobs' is not available"),
        ({"frequency_penalty": 0.5}, "BadRequestError", "use repetition_penalty"),
        ({"temperature": 3}, "BadRequestError", "temperature: "),
        ({"n": 0}, "BadRequestError", "n: "),
        ({"stop": ["a"] * 5}, "BadRequestError", "stop: "),
        ({"extra_body": {"top_q": 1}}, "BadRequestError", "did you mean 'top_"),
        ({"n": 8, "max_tokens": 1, "name": "tools", "extra_body": {"n": 999}}, "BadRequestError", "n: "),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_openais_shape(client, changes, kind, words):
    with pytest.raises(getattr(openai, kind)) as caught:
        ask(client, **changes)
    assert words in caught.value.body["message"], caught.value.body
    assert caught.value.body["code"]


def test_what_asks_for_nothing_may_be_there(client, answers):
    more = {"frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "user": "me", "top_p": 1, "seed": 1}
    assert ask(client, **more, extra_body={"tools": None}).choices[0].message.content == answers[CHAT]


def test_a_full_line_tells_to_come_back(address, with_adapters):
    with serving(with_adapters, "--parallel", "2", "--queue", "2") as (server, here):
        client = openai.OpenAI(base_url=f"{here}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client, "out", n=5)
        assert caught.value.response.headers["retry-after"] == "1"
        assert len(ask(client, "out", n=4).choices) == 4
        chunks = ask(client, "out", stream=True, max_tokens=2000, extra_body={"temperature": 2, "seed": 5})
        first = next(chunks)
        server.send_signal(signal.SIGTERM)
        rest = list(chunks)
        assert first.choices[0].delta.role == "assistant" and rest[-1].choices[0].finish_reason in ("stop", "length")
        assert server.wait(60) == 0
    with pytest.raises(openai.APIConnectionError):
        ask(client, "out")


def test_a_client_that_leaves_ends_its_answer(address, client):
    body = json.dumps({"model": "tools", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2000,
                       "temperature": 2, "stream": True}).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for said_first in (head.encode() + body, head.encode() + body[:20], head.encode()[:30]):
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
            connection.sendall(said_first)
            if said_first.endswith(body):
                assert connection.recv(10)
    waiting.until(lambda: 'coldpress_answers_running{model="tools"} 0.0' in page(address, "/metrics"), "the end")
    assert ask(client, "tools").choices


def page(address: str, path: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def test_state_is_told_without_a_key_and_answers_only_with_it(address, client, answers):
    assert json.loads(page(address, "/health")) == {"status": "ok"}
    ask(client)
    numbers = page(address, "/metrics")
    assert 'coldpress_requests_total{path="/v1/chat/completions",status="200"}' in numbers
    assert f'coldpress_first_token_seconds_count{{model="{CHAT}"}}' in numbers
    assert "<title>coldpress</title>" in page(address, "/")
    assert json.loads(page(address, "/v1/models"))["error"]["code"] == "invalid_api_key"
    wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="another key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        ask(wrong)


JUNK: list[Any] = [None, True, -1, 0, 1.5, 1e400, 10**400, "", "x", "\ud800", "\0", [], [[]], {}, {"": None}, [None]]


def mutated(seed: int) -> bytes:
    """A body that is wrong in one way or several."""
    dice = random.Random(seed)
    body: dict[str, Any] = {"model": "tools", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2,
                            "stop": ["a"], "stream": dice.random() < 0.3, "tools": [TOOL], "n": 1}  # fmt: skip
    for _ in range(dice.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        collect(body, places)
        where, key = dice.choice(places)
        where[key] = dice.choice(JUNK)
    text = json.dumps(body).encode()
    if dice.random() < 0.2:
        cut = dice.randrange(len(text))
        text = dice.choice([text[:cut], text[:cut] + dice.randbytes(9) + text[cut:], b"[" * 5000 + b"]" * 5000])
    return text


def collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key in value if isinstance(value, dict) else range(len(value)):
        places.append((value, key))
        if isinstance(value[key], dict | list):
            collect(value[key], places)


def test_malformed_bodies_are_answered_and_never_break_the_server(address, client, answers):
    statuses = set()
    for seed in range(200):
        status, answer = post(address, mutated(seed))
        statuses.add(status)
        assert status in (200, 400, 404), (mutated(seed), status, answer)
        if status != 200:
            assert json.loads(answer)["error"]["message"], mutated(seed)
    assert {200, 400} <= statuses
    assert post(address, b"{}", **{"Content-Type": "text/plain"})[0] == 400
    status, answer = post(address, b'"' + b"x" * (5 << 20) + b'"')
    assert status == 413 and b"body_too_large" in answer
    assert post(address, b"{}", "/v1/nothing")[0] == 404 and post(address, b"{}", "/v1/models")[0] == 405
    assert ask(client).choices[0].message.content == answers[CHAT]


def test_the_command_says_what_is_wrong(address, with_adapters, encoder):
    for arguments, code, words in (
        ([encoder, "--port", urlsplit(address).port], 1, "cannot be opened"),
        ([f"out={with_adapters}", f"out={encoder}"], 2, "two models are called 'out'"),
        ([f"={encoder}"], 2, "is not NAME=MODEL"),
        (["nowhere/at/all"], 2, "nowhere/at/all"),
    ):
        with pytest.raises(ColdpressError, match=words) as caught:
            app.main(["serve", *map(str, arguments)], standalone_mode=False)
        assert caught.value.exit_code == code
