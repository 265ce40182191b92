"""The page to chat in, in a real browser: under its own policy it finds the models, asks, and shows what comes."""

from __future__ import annotations

import asyncio
import html
import queue
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from coldpress.serving.catalog import Catalog, Limits
from coldpress.serving.chat import Conversation, model_folder
from coldpress.serving.engine import Engine, Sampling
from coldpress.serving.http import app as served
from coldpress.serving.http.gate import App, Rules

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUESTION = "<b>where</b> shall we go?"
#: what a person does: picks an adapter, types, sends, and reads when all is there
ACTS = """
  models().then(() => {
    part("model").value = "out:ADAPTER";
    part("text").value = "<b>where</b> shall we go?";
    part("ask").requestSubmit();
  });
  new MutationObserver(() => {
    if (document.querySelector("footer, .error")) fetch("/seen", { method: "POST", body: part("chat").innerHTML });
  }).observe(part("chat"), { childList: true, subtree: true });
"""


def seen_by(app: App, seen: queue.Queue[str]) -> App:
    """The app, with a path to which the page tells what it shows."""

    async def watched(scope, receive, send):
        if scope.get("path") != "/seen":
            await app(scope, receive, send)
            return
        seen.put((await receive())["body"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    return watched


@contextmanager
def running(app: object) -> Iterator[str]:
    """An ASGI app on a free port, in a thread."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.full
def test_a_question_is_answered_on_the_page(with_adapters, tmp_path, monkeypatch):
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    folder, catalog = model_folder(with_adapters), Catalog()
    catalog.add("out", folder, Limits(threads=1, max_new_tokens=12))
    catalog.chat_models["out"].sampling = Sampling(12)
    engine = Engine(folder, 1, {name: folder / f"{name}.onnx_adapter" for name in ("a1", "a2", "a3", "a4")})
    said = {
        name: "".join(Conversation(engine, sampling=Sampling(12), adapter=name).ask(QUESTION))
        for name in engine.adapters
    }
    adapter = max(said, key=lambda name: len(said[name].strip()))
    page = served._PAGE.read_text(encoding="utf-8").replace("</script>", f"{ACTS}</script>")
    (tmp_path / "page.html").write_text(page.replace("out:ADAPTER", f"out:{adapter}"), encoding="utf-8")
    monkeypatch.setattr(served, "_PAGE", tmp_path / "page.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"]  # fmt: skip
    seen: queue.Queue[str] = queue.Queue()
    with running(seen_by(served.make_app(catalog, Rules()), seen)) as address:
        browser = subprocess.Popen([program, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            shown = seen.get(timeout=120)
        finally:
            browser.kill()
            browser.wait()
    assert "error" not in re.findall(r'<article class="(.*?)"', shown), shown
    asked, answer = re.findall(r'<article class="(?:user|assistant)">(.*?)</article>', shown, re.DOTALL)
    assert html.unescape(asked) == QUESTION, "as text, not as a tag"
    assert html.unescape(answer.partition("<footer>")[0]) == said[adapter].replace("\r", "\n")
    assert "12 tokens, " in answer
