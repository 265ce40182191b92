"""Serves the model in the folder ``model`` beside this file over HTTP: POST a JSON object, get one back.

A chat model takes ``{"prompt": "...", "max_new_tokens": 64}``; any other takes an array for each of its inputs, such as
``{"input_ids": [[1, 2]]}``. Where adapter files lie beside a chat model, ``"adapter": "NAME"`` lets that one answer.
GET answers what the model takes. The port is $PORT, or 8000. This file and prompts.py beside it know nothing of
coldpress.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

FOLDER = Path(__file__).with_name("model")
_LARGEST_REQUEST_BYTES = 1 << 24
Request = dict[str, Any]
Answer = Callable[[Request], Request]


def chat_model(folder: Path) -> tuple[Answer, Request]:
    """How to answer prompts, and what a request looks like."""
    import onnxruntime_genai as og
    from prompts import prompt_ids  # the file beside this one

    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    adapters = og.Adapters(model)
    names = [file.stem for file in sorted(folder.glob("*.onnx_adapter"))]
    for name in names:
        adapters.load(str(folder / f"{name}.onnx_adapter"), name)

    def answer(request: Request) -> Request:
        tokens = prompt_ids(tokenizer, folder, [{"role": "user", "content": str(request["prompt"])}])
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(tokens) + int(request.get("max_new_tokens", 64)), do_sample=False)
        generator = og.Generator(model, params)
        if request.get("adapter"):
            if request["adapter"] not in names:
                raise ValueError(f"there is no adapter '{request['adapter']}', only {', '.join(names) or 'the base'}")
            generator.set_active_adapter(adapters, str(request["adapter"]))
        generator.append_tokens(tokens)
        made = []
        while not generator.is_done():
            generator.generate_next_token()
            made.append(generator.get_next_tokens()[0])
        return {"text": tokenizer.decode(made)}

    return answer, {"prompt": "text", "max_new_tokens": 64, **({"adapter": " or ".join(names)} if names else {})}


def onnx_model(folder: Path) -> tuple[Answer, Request]:
    """How to answer arrays, and what a request looks like."""
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(str(next(folder.rglob("*.onnx"))))
    kinds = {"tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}
    inputs = {value.name: (kinds.get(value.type, "float32"), value.shape) for value in session.get_inputs()}

    def answer(request: Request) -> Request:
        feeds = {name: np.array(request[name], dtype=kind) for name, (kind, _) in inputs.items()}
        names = [value.name for value in session.get_outputs()]
        return {name: value.tolist() for name, value in zip(names, session.run(names, feeds))}  # noqa: B905  Python 3.9

    return answer, {name: f"{kind} {shape}" for name, (kind, shape) in inputs.items()}


def transformers_model(folder: Path) -> tuple[Answer, Request]:
    """How to answer prompts, or to continue texts where there is no chat template, and what a request looks like."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def answer(request: Request) -> Request:
        text, has_template = str(request["prompt"]), tokenizer.chat_template is not None
        if has_template:
            messages = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, add_special_tokens=not has_template, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=int(request.get("max_new_tokens", 64)))
        return {"text": tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)}

    return answer, {"prompt": "text", "max_new_tokens": 64}


def load(folder: Path) -> tuple[Answer, Request]:
    """The model in a folder, whatever kind it is: how to ask it, and what a request looks like."""
    if (folder / "genai_config.json").exists():
        return chat_model(folder)
    return onnx_model(folder) if any(folder.rglob("*.onnx")) else transformers_model(folder)


def serve(port: int) -> None:
    answer, takes = load(FOLDER)
    one_at_a_time = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"takes": takes})

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if length > _LARGEST_REQUEST_BYTES:
                    self.reply(413, {"error": f"at most {_LARGEST_REQUEST_BYTES} bytes"})
                    return
                request = json.loads(self.rfile.read(length))
                with one_at_a_time:
                    self.reply(200, answer(request))
            except (KeyError, TypeError, ValueError) as error:
                self.reply(400, {"error": f"{type(error).__name__}: {error}", "takes": takes})

        def reply(self, status: int, content: Request) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("", port), Handler) as server:
        print(f"serving {FOLDER.name} on port {server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    serve(int(os.environ.get("PORT", "8000")))
