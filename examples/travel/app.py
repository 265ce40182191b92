"""Ask the travel assistant: the model with its adapter, and then the same model without it.

python app.py "what is the best thing to see in chicago" --model MODEL --adapter FILE
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the next line loads ONNX Runtime

import onnxruntime_genai as og

MODEL = "models/phi/onnx-ao/model"
QUESTION = "what is the best thing to see in chicago"


def main() -> None:
    asked = arguments()
    print("loading model and adapters...", end="", flush=True)
    model = og.Model(asked.model)
    adapters = og.Adapters(model)
    adapters.load(asked.adapter or f"{asked.model}/adapter_weights.onnx_adapter", "travel")
    tokenizer = og.Tokenizer(model)
    print("DONE!")

    messages = json.dumps([{"role": "user", "content": asked.question}])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    print(asked.question)
    for title, adapter in (("with the adapter", "travel"), ("without it", None)):
        print(f"\n[{title}]")
        for piece in answer(model, tokenizer, prompt, asked.max_length, (adapters, adapter) if adapter else ()):
            print(piece, end="", flush=True)
        print()


def answer(
    model: og.Model, tokenizer: og.Tokenizer, prompt: str, max_length: int, adapter: tuple[og.Adapters, str] | tuple[()]
) -> Iterator[str]:
    """The likeliest answer to a prompt, piece by piece; ``adapter``: those that are loaded, and the name of the active
    one."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=max_length, do_sample=False)
    generator = og.Generator(model, params)
    if adapter:
        generator.set_active_adapter(*adapter)
    generator.append_tokens(tokenizer.encode(prompt))
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        yield stream.decode(generator.get_next_tokens()[0])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask the travel assistant, with its adapter and without.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", default=MODEL, help="folder of onnxruntime-genai (%(default)s)")
    parser.add_argument("--adapter", help="file with the adapter's weights (adapter_weights.onnx_adapter in the model)")
    parser.add_argument("--max_length", type=int, default=200, help="tokens of question and answer (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
