"""Tiny ONNX models whose answers are known beforehand, and a tokenizer of whole words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
OPSET = [helper.make_opsetid("", 17)]


def write_word_tokenizer(folder: Path, words: Sequence[str], longest: int = 16) -> list[str]:
    """A tokenizer of whole words, as BERT has it around them; returns the vocabulary in order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = [*SPECIAL, *words]
    numbers = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def write_text_classifier(
    folder: Path, table: np.ndarray, each_token: bool = False, batch: str | int = "batch"
) -> Path:
    """A model whose logits are the mean, without padding, of the rows of ``table [words, classes]``, or each row
    itself."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch, "sequence"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [batch, "sequence"])
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits" if each_token else "rows"])]
    if not each_token:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["weight"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["weight", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "one"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["weight", "one"], ["tokens"], keepdims=1),
            helper.make_node("Div", ["sum", "tokens"], ["logits"]),
        ]
    constants = [
        numpy_helper.from_array(table.astype(np.float32), "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    shape = [batch, "sequence", table.shape[1]] if each_token else [batch, table.shape[1]]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    inputs = [ids] if each_token else [ids, mask]
    return _save(folder, helper.make_graph(nodes, "text", inputs, [logits], constants))


def write_linear(folder: Path, weights: np.ndarray, shape: Sequence[str | int], name: str = "pixels") -> Path:
    """A model with one float input of ``shape [N, ...]``, flattened and multiplied by ``weights [all the rest,
    classes]``."""
    folder.mkdir(parents=True, exist_ok=True)
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", weights.shape[1]])
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(weights.astype(np.float32), "weights")]
    return _save(folder, helper.make_graph(nodes, "linear", [given], [logits], constants))


def _save(folder: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder
