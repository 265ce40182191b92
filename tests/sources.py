"""A small real model of each format, and data for it: what parts are put to work on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests import onnx_models
from tests.adapters import make_adapter
from tests.conftest import write_model, write_tokenizer
from tests.models.test_gguf import tiny_llama
from tests.models.test_text_part import whole
from tests.passes.conftest import write_text
from tests.sounds import write_sound
from tests.tiny_graphs import write_linear, write_text_classifier, write_word_tokenizer

SCORE = """
import numpy as np

def batches(model):
    yield {"x": np.ones((2, 8), np.float32)}

def ids(model):
    yield {"input_ids": np.arange(8)[None] + 9}

def loader(data_dir, batch_size, of="x"):
    yield from batches("") if of == "x" else ids("")

def score(model, context):
    return {"value": 1.0}
"""

#: a module of PyTorch: both axes of its first input are open, and the first of its second
MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(20, 3)

    def forward(self, ids, style):
        text = self.embed(ids).mean(1)
        return {"scores": self.head(torch.cat([text, style], -1)), "text": text}


def _model_loader(model_path):
    print("a script may print", end="")
    torch.manual_seed(0)
    return Net()


def _dummy_inputs(model):
    return {"ids": torch.arange(6)[None], "style": torch.randn(1, 4)}
"""

#: a task of lm-evaluation-harness
TASK = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: [" wet", " hot"]
"""


def write_sources(folder: Path) -> Path:
    """All of them, in folders and files below one."""
    write_model(folder / "tiny")
    tiny_llama(folder / "tiny.gguf")
    whole("Gemma3ForConditionalGeneration", folder / "multimodal")
    write_tokenizer(folder / "multimodal")
    onnx_models.saved(onnx_models.dense(), folder / "dense")
    onnx_models.saved(onnx_models.convolutional(), folder / "convolutional", external=True)
    write_text(folder / "text.txt")
    _write_modules(folder)
    _write_adapters(folder)
    return folder


def write_data(folder: Path) -> Path:
    """Classifiers of texts, words, pictures and sounds, and rows for each."""
    from PIL import Image

    words = write_word_tokenizer(folder / "spam", ("win", "cash", "hello", "friend"))
    write_text_classifier(folder / "spam", np.array([[0, 4] if word in ("win", "cash") else [1, 0] for word in words]))
    (folder / "sms.csv").write_text("text,label\nwin cash,1\nhello,0\nfriend hello,0\n")
    tagged = [{"tokens": ["hello", "cash"], "ner_tags": [0, 1]}, {"tokens": ["win"], "ner_tags": [1]}]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged))
    asked = [{"text": "What is cold?", "answer": "ice"}, {"text": "What is hot?", "answer": "fire"}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    write_linear(folder / "pictures", np.ones((48, 2)), ["N", 3, 4, 4], "pixel_values")
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), colour).save(folder / "photos" / name / "0.png")
    np.savez(folder / "inputs.npz", x=np.ones((3, 8), np.float32))
    (folder / "score.py").write_text(SCORE)
    (folder / "tasks").mkdir()
    chosen = [{"question": "Water is", "answer": 0}, {"question": "Fire is", "answer": 1}]
    (folder / "tasks/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (folder / "tasks/pick.yaml").write_text(TASK.format(rows=folder / "tasks/rows.jsonl"))
    write_linear(folder / "sounds", np.ones((160, 2)), ["N", 160], "input_values")
    (folder / "sounds" / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16000})
    )
    write_sound(folder / "beep.wav", np.sin(np.arange(160)))
    (folder / "sounds.jsonl").write_text(json.dumps({"audio": "beep.wav", "class": 1}) + "\n")
    return folder


def _write_modules(folder: Path) -> None:
    import torch

    (folder / "module.py").write_text(MODULE)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    example = (torch.randn(2, 4),)
    torch.jit.save(torch.jit.trace(network, example), folder / "module.pt")
    torch.export.save(torch.export.export(network, example), folder / "module.pt2")


def _write_adapters(folder: Path) -> None:
    """An adapter, and a graph that has one inside."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    tuned = make_adapter(base, folder / "adapter", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(folder), "models"))

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = tuned.base_model.model.model.layers[0].self_attn.q_proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q_proj(x)

    (folder / "exported").mkdir()
    file = folder / "exported" / "model.onnx"
    torch.onnx.export(Attention().eval(), (torch.ones(1, 3, 64),), file, dynamo=False, input_names=["x"])
