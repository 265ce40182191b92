"""An adapter merged by PEFT and transformers with the whole base in memory, for kinds that cannot be merged layer by
layer.

These are adapters that start from a part of the base's weights, which PEFT takes out again when it loads them, those of
parameters that hold all experts of a layer, and those of classifiers and encoder-decoders.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from coldpress.errors import WORK_FAILED, ColdpressError
from coldpress.models.checkpoint import read_header
from coldpress.models.packed.folder import quantization_config
from coldpress.models.peft import WEIGHTS, acts_on_whole, read_config
from coldpress.models.quantized_folder import copy_other_files
from coldpress.networks.adapted import resize

#: PEFT's tasks -> what transformers loads for them
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
#: how the classes end whose weights are merged layer by layer
_CAUSAL, _AUTO = ("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM"
#: what PEFT calls the heads of classifiers
_HEADS = (".score.weight", ".classifier.weight")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja"),
)


def needs_whole(base: Path, adapter: Path) -> bool:
    """Whether an adapter is one of these."""
    return acts_on_whole(read_config(adapter)) or _class(base, adapter) != _AUTO


def merge_whole(base: Path, adapter: Path, output: Path, trust_remote_code: bool = False) -> str:
    """Write the merged checkpoint to ``output``; gives its type, which is the base's.

    Sums are made in float32. Raises ColdpressError for a quantized base and for what PEFT cannot merge.
    """
    import torch
    from peft import PeftModel

    if quantization_config(base):
        raise ColdpressError(
            f"adapter '{adapter}' is merged with its base as a whole, and '{base}' is quantized",
            hint="merge it with the base before it was quantized, and quantize the result",
        )
    model = _model(base, adapter, trust_remote_code)
    dtype = getattr(model.config, "dtype", None) or torch.float32
    model = model.float()
    tokens = resize(model, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError, LookupError, OSError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ColdpressError(f"PEFT cannot merge the adapter {adapter}: {reason}", exit_code=WORK_FAILED) from error
    copy_other_files(base, output)
    merged.to(dtype).save_pretrained(output)
    if tokens is not None:
        take_tokenizer(adapter, output)
    return str(dtype).removeprefix("torch.")


def take_tokenizer(adapter: Path, output: Path) -> None:
    """The tokenizer that an adapter with more tokens than its base was saved with, in place of the base's."""
    for name in TOKENIZER_FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, output / name)


def _model(base: Path, adapter: Path, trust_remote_code: bool) -> Any:
    import transformers

    options: dict[str, Any] = {"dtype": "auto", "trust_remote_code": trust_remote_code, "local_files_only": True}
    heads = [span.shape[0] for name, span in read_header(adapter / WEIGHTS).items() if name.endswith(_HEADS)]
    labels = {"num_labels": heads[0]} if heads else {}
    return getattr(transformers, _class(base, adapter)).from_pretrained(base, **options, **labels).eval()


def _class(base: Path, adapter: Path) -> str:
    """What loads the network that an adapter was trained on: by its task, else what the base itself is."""
    import transformers

    task = str(read_config(adapter).get("task_type"))
    if task in _CLASSES:
        return _CLASSES[task]
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    own = next(iter(config.get("architectures") or ()), "")
    return own if hasattr(transformers, own) and not own.endswith(_CAUSAL) and task != "CAUSAL_LM" else _AUTO
