"""Answers that are made side by side: in turns, in line, given up; their texts, their calls, readers that take nothing."""

from __future__ import annotations

import asyncio
import json
import queue

import pytest

from coldpress.errors import ColdpressError
from coldpress.serving.chat import model_folder
from coldpress.serving.engine import Engine, Sampling
from coldpress.serving.scheduler import Busy, Closing, Ended, Question, Scheduler
from coldpress.serving.text import Text
from tests import waiting

PROMPT = [0, 40, 41, 42]


@pytest.fixture(scope="module")
def engine(with_adapters):
    folder = model_folder(with_adapters)
    return Engine(folder, 1, {"a1": folder / "a1.onnx_adapter"})


def made(events):
    """All tokens that are told, and what is told last."""
    tokens = []
    while isinstance(event := events.get(timeout=60), int):
        tokens.append(event)
    return tokens, event


def test_answers_take_turns_and_are_those_of_each_alone(engine):
    scheduler, order = Scheduler(engine, parallel=2, waiting=9), []
    questions = [Question(PROMPT, Sampling(20), adapter) for adapter in (None, "a1", None)]
    told = [queue.Queue() for _ in questions]
    tells = [lambda event, place=place: (order.append(place), told[place].put(event)) for place in range(3)]
    scheduler.submit(questions, tells)
    for events, question in zip(told, questions, strict=True):
        alone = engine.generate(PROMPT, Sampling(20), question.adapter).finished()
        assert made(events) == (alone.tokens, Ended(alone.ended))
    assert order[:6] == [0, 1, 0, 1, 0, 1], "two at a time, a token each"
    scheduler.close()


def test_a_line_has_an_end_and_closing_refuses_it(engine):
    scheduler = Scheduler(engine, parallel=1, waiting=1)
    told = [queue.Queue(), queue.Queue()]
    long = Question(PROMPT, Sampling(1500, temperature=2.0, seed=3))
    with pytest.raises(Busy):
        scheduler.submit([long] * 3, [print] * 3)
    scheduler.submit([long] * 2, [events.put for events in told])
    scheduler.close()
    refused = [made(events)[1] for events in told]
    assert isinstance(refused[1], ColdpressError) and "shutting down" in str(refused[1])
    with pytest.raises(Closing):
        scheduler.submit([long], [print])


def test_what_nobody_waits_for_is_not_made(engine):
    scheduler, events = Scheduler(engine, parallel=1, waiting=1), queue.Queue()
    first, second = scheduler.submit([Question(PROMPT, Sampling(1500, temperature=2.0))] * 2, [events.put] * 2)
    first.close()
    second.close()
    waiting.until(lambda: not scheduler.running and not scheduler.waiting, "an empty line")
    scheduler.close()


def test_a_reader_that_takes_nothing_is_given_up(with_adapters):
    from coldpress.serving.catalog import Catalog, Limits
    from coldpress.serving.http.app import make_app
    from coldpress.serving.http.gate import Rules

    catalog = Catalog()
    catalog.add("out", model_folder(with_adapters), Limits(threads=1))
    app = make_app(catalog, Rules(patience_s=0.01))
    body = {"model": "out", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2000, "stream": True}
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "http_version": "1.1",
             "scheme": "http", "server": ("x", 80), "client": ("y", 1), "root_path": "",
             "headers": [(b"content-type", b"application/json")], "asgi": {"version": "3.0", "spec_version": "2.3"}}  # fmt: skip

    async def asked():
        given, never = [{"type": "http.request", "body": json.dumps(body).encode()}], asyncio.Event()

        async def receive():
            return given.pop() if given else await never.wait()

        async def send(message):
            if message["type"] == "http.response.body":
                await never.wait()

        await app(scope, receive, send)

    asyncio.run(asked())
    scheduler = catalog.chat_models["out"].scheduler
    waiting.until(lambda: not scheduler.running, "the end of the answer")


class Letters:
    """A decoder for which a token is a letter."""

    decode = staticmethod(chr)


@pytest.mark.parametrize(
    ("stops", "said", "shown", "found"),
    [
        (["end"], "an ending", "an ", "end"),
        (["\n\n", "\nQ"], "a\nb\nQ", "a\nb", "\nQ"),
        (["aab"], "aaab", "a", "aab"),
        (["xyz"], "xy", "xy", None),
        ([], "plain", "plain", None),
        (["b", "abc"], "abc", "a", "b"),
    ],
)
def test_text_ends_before_a_stop_and_shows_nothing_of_it(stops, said, shown, found):
    text, pieces = Text(Letters(), stops), []
    for letter in said:
        pieces.append(text.feed(ord(letter)))
        assert shown.startswith("".join(pieces))
        if text.found:
            break
    assert "".join([*pieces, text.rest()]) == shown and text.found == found


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"name": "f", "arguments": {"x": 1}}', [("f", {"x": 1})]),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call>', [("f", {}), ("g", {})]),
        ('<|tool_call|>[{"name": "g", "arguments": {"y": [2]}}]<|/tool_call|>', [("g", {"y": [2]})]),
        ('<|python_tag|>{"name": "f", "parameters": {"x": "z"}}', [("f", {"x": "z"})]),
        ('{"name": "h", "arguments": {}}', []),
        ('{"name": "f", "arguments": {}', []),
        ('Call {"name": "f"}', []),
        ("[1, 2]", []),
        ("[" * 100_000, []),
    ],
)  # fmt: skip
def test_calls_are_read_as_models_write_them(said, expected):
    from coldpress.serving.http.calls import calls_in, may_be_a_call

    found = calls_in(said, ("f", "g"))
    assert [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in found] == expected
    if expected:
        assert all(may_be_a_call(said[:length]) for length in range(1, len(said)))
