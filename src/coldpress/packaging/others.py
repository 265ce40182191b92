"""What programs of others look for beside a chat model: Foundry Local, and transformers.js."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coldpress.models.onnx_folder import read_genai_config
from coldpress.models.tokenizers.chat_template import read_chat_template

#: where Foundry Local puts what is said
_SAID = "{Content}"


def inference_model(name: str, folder: Path) -> dict[str, Any]:
    """``inference_model.json``, by which Foundry Local finds a model of one's own, under ``name``, in its cache.

    Its own server takes the chat template of the model; ``PromptTemplate`` is for versions that do not.
    """
    template = read_chat_template(folder)
    if template is None:
        return {"Name": name, "PromptTemplate": None}
    prompt = template.render([{"role": "user", "content": _SAID}], for_answer=True)
    return {"Name": name, "PromptTemplate": {"assistant": _SAID, "prompt": prompt}}


def config_of_transformers(folder: Path) -> dict[str, Any]:
    """``config.json`` with what transformers.js has to know to run a decoder, from genai_config.json."""
    settings = read_genai_config(folder)["model"]
    decoder = settings["decoder"]
    tokens = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in settings}
    return {
        "model_type": settings["type"],
        "vocab_size": settings["vocab_size"],
        "max_position_embeddings": settings["context_length"],
        "hidden_size": decoder["hidden_size"],
        "num_hidden_layers": decoder["num_hidden_layers"],
        "num_attention_heads": decoder["num_attention_heads"],
        "num_key_value_heads": decoder["num_key_value_heads"],
        "head_dim": decoder["head_size"],
        **tokens,
    }
