"""``coldpress serve`` against a bare loop of onnxruntime-genai: SmolLM2 in int4 with four adapters, 16 clients, greedy
answers of 32 tokens, each with the adapter of its turn.

A round is 50 requests, half of them streamed; twenty are a run. The bare loop answers the same questions one by one, in
a process of its own: what it says is what the server must say, whichever adapter runs beside it. The first byte is that
of a client alone, against the first token of the loop.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.adapters import write_adapter
from benchmarks.measure import Claim, Options, Outcome, in_a_fresh_process, pinned, spread_of_numbers
from benchmarks.press_smollm2 import coldpress, press, smollm2_folder

ROUNDS, REQUESTS, CLIENTS = 20, 50, 16
_NEW_TOKENS, _ALONE = 32, 10
_ADAPTERS = ("one", "two", "three", "four")
_QUESTIONS = ("What is the sea?", "Name three colours.", "Why do cats purr?", "Tell me of a journey.", "Hello!")


def run(options: Options) -> Outcome:
    """The claims about the server."""
    source = smollm2_folder(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        for seed, adapter in enumerate(_ADAPTERS):
            write_adapter(source, folder / adapter, ("q_proj", "v_proj"), seed=seed, scale=0.05)
        paths = [str(folder / adapter) for adapter in _ADAPTERS]
        press(coldpress(source, "kquant", options.threads, "--adapter_path", *paths), options, folder / "smollm2")
        said = folder / "said.json"
        request = {"folder": str(folder / "smollm2/model"), "threads": options.threads, "said": str(said)}
        bare = in_a_fresh_process("benchmarks.serving", request, options)
        loops, served, wrong, lost = [], [], 0, 0
        for _ in range(options.rounds or ROUNDS):
            loops.append(bare())
            with _server(folder / "smollm2", options) as address:
                found, numbers = _round(address)
            served.append(numbers)
            expected = json.loads(said.read_text(encoding="utf-8"))
            lost += sum(answer is None for answer in found)
            wrong += sum(answer not in (None, expected[_label(place)]) for place, answer in enumerate(found))
    measured = {"bare loop": spread_of_numbers(loops), "server": spread_of_numbers(served)}
    return Outcome(measured, _claims(measured, wrong, lost))


def _claims(measured: dict[str, Any], wrong: int, lost: int) -> list[Claim]:
    def median(label: str, number: str) -> float:
        return float(measured[label][number]["median"])

    speed, first = "tokens_per_second", "first_token_ms"
    share = median("server", speed) / median("bare loop", speed)
    return [
        Claim("requests without an answer", lost, 0),
        Claim("answers that are not those of their adapter", wrong, 0),
        Claim("tokens/s over those of the bare loop", share, 0.9, "higher"),
        Claim("first byte after the loop's first token, ms", median("server", first) - median("bare loop", first), 5.0),
    ]


def _asked(place: int) -> tuple[str | None, str]:
    """The adapter and the question of a request; every fifth goes to the base."""
    return (None, *_ADAPTERS)[place % 5], _QUESTIONS[place // 5 % len(_QUESTIONS)]


def _label(place: int) -> str:
    return " ".join(map(str, _asked(place)))


@contextmanager
def _server(folder: Path, options: Options) -> Iterator[str]:
    command = [sys.executable, "-m", "coldpress", "serve", str(folder), "--port", "0"]
    command += ["--threads", str(options.threads)]
    server = subprocess.Popen(command, env={**os.environ, **pinned(options.threads)}, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "/v1; chat at http://" in line)
        yield line.rpartition("http://")[2].strip()
    finally:
        server.terminate()
        server.wait()


def _round(address: str) -> tuple[list[str | None], dict[str, float]]:
    """The answers to a round of requests in order, None for one that is lost; and how fast they came."""
    alone = [_ask(address, place)[1] for place in range(_ALONE + 1)][1:]
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        found = list(clients.map(lambda place: _ask(address, place, place % 2 == 0), range(REQUESTS)))
    seconds = time.perf_counter() - began
    tokens = sum(count for _, _, count in found)
    numbers = {"tokens_per_second": tokens / seconds, "first_token_ms": statistics.median(alone) * 1e3}
    return [text for text, _, _ in found], numbers


def _ask(address: str, place: int, is_streamed: bool = True) -> tuple[str | None, float, int]:
    """The answer, the seconds to its first byte, and its tokens."""
    adapter, question = _asked(place)
    body = {"model": f"smollm2:{adapter}" if adapter else "smollm2", "max_tokens": _NEW_TOKENS, "temperature": 0,
            "messages": [{"role": "user", "content": question}], "stream": is_streamed,
            "stream_options": {"include_usage": True}}  # fmt: skip
    connection = http.client.HTTPConnection(address, timeout=600)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    head = response.read(1)
    first = time.perf_counter() - began
    content = (head + response.read()).decode()
    connection.close()
    if response.status != 200:
        return None, first, 0
    if not is_streamed:
        whole = json.loads(content)
        return whole["choices"][0]["message"]["content"], first, whole["usage"]["completion_tokens"]
    events = [json.loads(line.removeprefix("data: ")) for line in content.split("\n\n")[:-2]]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    return text, first, events[-1]["usage"]["completion_tokens"]


def _loop(request: dict[str, Any]) -> dict[str, float]:
    """The same questions, one after the other, by onnxruntime-genai alone; what it says goes into a file."""
    import onnxruntime_genai as og

    folder = Path(request["folder"])
    config = og.Config(str(folder))
    session = {"intra_op_num_threads": request["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    tokenizer, adapters = og.Tokenizer(model), og.Adapters(model)
    for name in _ADAPTERS:
        adapters.load(str(folder / f"{name}.onnx_adapter"), name)
    answers, firsts, tokens, seconds = {}, [], 0, 0.0
    for place in range(-1, REQUESTS):  # the first does not count
        adapter, question = _asked(max(place, 0))
        began = time.perf_counter()
        chat = json.dumps([{"role": "user", "content": question}])
        prompt = tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + _NEW_TOKENS, do_sample=False)
        generator, stream, text = og.Generator(model, params), tokenizer.create_stream(), ""
        if adapter:
            generator.set_active_adapter(adapters, adapter)
        generator.append_tokens(prompt)
        moments = []
        while not generator.is_done():
            generator.generate_next_token()
            text += stream.decode(generator.get_next_tokens()[0])
            moments.append(time.perf_counter() - began)
        if place >= 0:
            answers[_label(place)] = text
            firsts.append(moments[0])
            tokens += len(moments)
            seconds += moments[-1]
    Path(request["said"]).write_text(json.dumps(answers), encoding="utf-8")
    return {"tokens_per_second": tokens / seconds, "first_token_ms": statistics.median(firsts) * 1e3}


if __name__ == "__main__":
    print(json.dumps(_loop(json.loads(sys.argv[1]))))
