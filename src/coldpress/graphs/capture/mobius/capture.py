"""Capture by mobius, from a configuration alone: no network is built, and no weight read.

mobius (https://github.com/onnxruntime/mobius) writes the graph declaratively, already fused for the execution
provider. What it gets wrong is put right in ``corrections``; which tensor of the checkpoint fills
which initializer is found in ``weights``.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.graphs.accounting import listed, require_all_read, require_no_placeholders
from coldpress.graphs.capture.captured import Captured, Request
from coldpress.graphs.capture.mobius import deferred_torch
from coldpress.graphs.capture.mobius.attention_fusion import use_exact_fusion
from coldpress.graphs.capture.mobius.corrections import correct
from coldpress.graphs.capture.mobius.settings import corrected, has_biases_in_doubt
from coldpress.graphs.capture.mobius.weights import Sources, sources_of, with_base_prefix
from coldpress.models.checkpoint import Span
from coldpress.models.packed.spans import tensors_to_press
from coldpress.models.ties import has_own_head
from coldpress.networks.loading_report import left_out, loading_report

_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_NOT_FOR_MOBIUS = ("dtype", "torch_dtype", "quantization_config")
#: providers that mobius has no graphs for; they take operators of the ONNX standard
_WITHOUT_OPERATORS = ("tensorrt", "migraphx", "vitisai")
_SUPPORTED_COMPONENTS = ({"model"}, {"encoder", "decoder"})
#: architectures whose result is made by a head that mobius leaves out
_TASK_HEADS = (
    "Classification",
    "QuestionAnswering",
    "MultipleChoice",
    "NextSentencePrediction",
    "Detection",
    "Segmentation",
)
#: endings of the names of classes that are decoders with a head
_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def capture(request: Request) -> Captured:
    """Build the graph of a model; ``request.scratch`` receives a copy of its configuration, too.

    To be called in a worker process: it hides torch, see ``deferred_torch``.
    """
    folder, scratch, trust_remote_code = request.folder, request.scratch, request.trust_remote_code
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    deferred_torch.hide()
    import transformers  # noqa: F401  (before torch is visible, so that it leaves its own model code alone)

    tensors, remarks = tensors_to_press(folder)
    if has_own_head(tensors) and not hf_config.get("is_encoder_decoder"):
        hf_config["tie_word_embeddings"] = False
    known = _known_to_transformers(_config_for_mobius(hf_config, scratch), trust_remote_code)
    if has_biases_in_doubt(known, tensors):
        tensors, remark = _as_transformers_loads(folder, tensors, hf_config)
        remarks += remark
    deferred_torch.defer()
    package, module = _build(scratch, hf_config, tensors, request)
    if set(package) not in _SUPPORTED_COMPONENTS:
        raise ColdpressError(
            f"'{hf_config.get('model_type')}' has the parts {sorted(package)}; coldpress presses single models and"
            " encoder-decoders",
            hint="a checkpoint with text_config and vision_config in its config.json is pressed as its text model",
        )
    _require_head([component.graph for component in package.values()], hf_config)
    for component in package.values():
        correct(component.graph, known, package.config)
    filled = partial(_filled, package, module, scratch)
    try:
        sources, found = filled(tensors)
    except ColdpressError:
        as_loaded, remark = _as_transformers_loads(folder, tensors, hf_config)
        if as_loaded == tensors:
            raise
        sources, found = filled(as_loaded)
        remarks += remark
    return Captured(dict(package.items()), sources.spans, package.config, hf_config, [*remarks, *found])


def _as_transformers_loads(
    folder: Path, tensors: dict[str, Span], hf_config: dict[str, Any]
) -> tuple[dict[str, Span], list[str]]:
    """The tensors by the names that they have in transformers' network, without those that it has no place for.

    And what is to be said of these.
    """
    report = loading_report(folder, (hf_config.get("architectures") or [""])[0])
    if report is None:
        return tensors, []
    unused = left_out(folder, tensors, report)
    kept = {
        report.names.get(name, name): span for name, span in tensors.items() if name not in {*unused, *report.ignored}
    }
    what = (
        f"The checkpoint has {listed(unused)}, which transformers does not load either: is config.json that of these"
        " weights?"
    )
    return kept, [what] if unused else []


def _filled(package: Any, module: Any, scratch: Path, tensors: dict[str, Span]) -> tuple[Sources, list[str]]:
    """What fills the graphs, and remarks on what does not; ColdpressError where something is lost or lacking."""
    wanted = {str(name) for component in package.values() for name in component.graph.initializers}
    sources = sources_of(module, with_base_prefix(tensors, wanted), scratch)
    return sources, _account(package, sources, tensors)


def _account(package: Any, sources: Sources, tensors: dict[str, Span]) -> list[str]:
    """What the graphs leave out of the checkpoint; ColdpressError for what may not be."""
    graphs = [component.graph for component in package.values()]
    for graph in graphs:
        require_no_placeholders(graph, sources.spans)
    used = {name for graph in graphs for name, value in graph.initializers.items() if value.uses()}
    taken = [span for name, span in sources.spans.items() if name in used]
    whole = frozenset[str]().union(*(origins for name, origins in sources.origins.items() if name in used))
    heads = any(output.name == "logits" for graph in graphs for output in graph.outputs)
    return require_all_read(tensors, taken, whole, heads)


def _config_for_mobius(config: dict[str, Any], scratch: Path) -> Path:
    """Write a config.json that names no dtype (resolving it would import torch; we always say which we want).

    Nor does it say how weights are packed: that is read and pressed here, mobius shall see a plain model.
    DistilBERT gets two settings that mobius looks for under the names that other models have.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in _NOT_FOR_MOBIUS}
        return value

    if config.get("model_type") == "distilbert":
        config = {"intermediate_size": config.get("hidden_dim", 3072), "layer_norm_eps": 1e-12, **config}
    (scratch / "config.json").write_text(json.dumps(strip(config)), encoding="utf-8")
    return scratch


def _known_to_transformers(folder: Path, trust_remote_code: bool) -> Any:
    """The configuration, loaded while torch is hidden; None for models that only mobius knows."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError):
        return None


def _build(folder: Path, hf_config: dict[str, Any], tensors: Collection[str], request: Request) -> tuple[Any, Any]:
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of each initializer without a value: all of ours
    warnings.simplefilter("ignore")
    import mobius

    use_exact_fusion()
    registered = registered_name(hf_config)
    registration = mobius.registry.get_registration(registered)
    module_class = corrected(registration.module_class, registration.config_class, tensors)
    package = mobius.build(
        str(folder),
        module_class=module_class,
        dtype=_TYPES[request.dtype],
        execution_provider="onnx-standard" if request.provider in _WITHOUT_OPERATORS else request.provider,
        load_weights=False,
        trust_remote_code=request.trust_remote_code,
    )
    return package, module_class(package.config)


def registered_name(hf_config: Mapping[str, Any]) -> str:
    """What mobius knows a configuration by: its class, or its model type. ColdpressError for what it does not know."""
    import mobius

    model_type = str(hf_config.get("model_type", ""))
    architecture = (hf_config.get("architectures") or [""])[0]
    registered = [name for name in (architecture, model_type) if name in mobius.registry]
    if not registered:
        known = [str(name) for name in mobius.registry.architectures()]
        raise ColdpressError(f"unknown architecture '{model_type}'", hint=_nearest(model_type, known))
    return str(registered[0])


def _nearest(model_type: str, known: list[str]) -> str:
    hint = did_you_mean(model_type, known)
    return (
        hint if hint.startswith("did") else f"{len(known)} architectures are known, such as llama, qwen3, phi3, gemma3"
    )


def _require_head(graphs: Sequence[Any], hf_config: dict[str, Any]) -> None:
    """Refuse a classifier whose graph ends in hidden states, before it passes for the model that was asked for.

    And a decoder alone that mobius takes for the whole pair of its model type.
    """
    architecture = (hf_config.get("architectures") or [""])[0]
    if len(graphs) > 1 and architecture.endswith("ForCausalLM"):
        raise ColdpressError(
            f"{architecture} is a decoder alone; mobius knows '{hf_config.get('model_type')}' only with its encoder",
            hint="press the encoder-decoder that it was taken from",
        )
    headless = all(output.name != "logits" for graph in graphs for output in graph.outputs)
    if headless and architecture.endswith((*_TASK_HEADS, *_DECODERS)):
        raise ColdpressError(
            f"{architecture}: only the part of this model without its head can be captured",
            hint="save that part alone (for instance AutoModel.from_pretrained(...).save_pretrained(...)) to press it",
        )
