"""The model card: what the folder holds, how good it is, how to run it and how it was made (README.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from coldpress.report import (
    Fact,
    Report,
    entries,
    facts,
    measured_on,
    model_name,
    number,
    plain,
    precision,
    reasons,
    section,
    task,
    verdict,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FROM_HUB = ("hub", "wheel")

RUN_GENERATION = """\
import json
from pathlib import Path

import onnxruntime_genai as og

model = og.Model(".")  # this folder
tokenizer = og.Tokenizer(model)
prompt = "What is the capital of France?"
if Path("chat_template.jinja").exists():
    messages = json.dumps([{"role": "user", "content": prompt}])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
else:
    tokenizer.update_options(add_special_tokens="true")  # a base model continues the text

params = og.GeneratorParams(model)
params.set_search_options(max_length=256)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode(prompt))
stream = tokenizer.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
"""
RUN_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = AutoModelForCausalLM.from_pretrained(".")
prompt = "The capital of France is"
if tokenizer.chat_template:  # a base model has none: it continues the text
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
"""
_COMPILES = "\nGPTQModel compiles its kernels when it first loads such a model, which can take minutes.\n"
#: format of a folder -> what transformers needs to load it, and what one should know
_LOADERS = {
    "compressed-tensors": ("transformers compressed-tensors", ""),
    "gptq": ("transformers optimum gptqmodel", _COMPILES),
    "awq": ("transformers gptqmodel", _COMPILES),
}
RUN_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")  # in this folder
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "adapter")
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
"""
RUN_SESSION = """\
from pathlib import Path

import onnxruntime as ort

for file in sorted(Path(".").rglob("*.onnx")):  # this folder
    session = ort.InferenceSession(file)
    for value in session.get_inputs():
        print(file, value.name, value.shape, value.type)
"""


def card(report: Report) -> str:
    """The text of README.md, with front matter that model hubs read."""
    if _is_adapter(report):
        return "\n".join(part(report) for part in (_front_matter, _opening, _usage_of_adapter, _making))
    parts = (_front_matter, _opening, _usage, _quality, _making)
    return "\n".join(part(report) for part in parts)


def base_model(report: Report) -> str | None:
    """The source's name on the hub; None when it came from somewhere else, even if its name looks like one."""
    source = section(report, "source")
    name = str(source.get("name") or "")
    return name if source.get("origin") in _FROM_HUB and _HUB_ID.fullmatch(name) else None


def _front_matter(report: Report) -> str:
    runtime, known = "onnxruntime-genai" if _generates(report) else "onnxruntime", task(report)
    library = "peft" if _is_adapter(report) else "transformers"
    lines = [f"library_name: {runtime if _is_onnx(report) else library}"]
    if base := base_model(report):
        lines += [f"base_model: {base}", *(["base_model_relation: quantized"] if _bits(report) < 16 else [])]
    lines += [f"pipeline_tag: {known.pipeline}"] if known else []
    lines += [
        "license: other",
        "license_name: see-the-source-model",
        "tags:",
        *(["- onnx"] if _is_onnx(report) else []),
        "- coldpress",
    ]
    lines += [f"- {json.dumps(tag)}" for tag in (precision(report), section(report, "target").get("device")) if tag]
    return "\n".join(["---", *lines, "---", ""])


def _is_onnx(report: Report) -> bool:
    return report.get("format", "onnx") == "onnx"


def _is_adapter(report: Report) -> bool:
    return report.get("format") == "adapter"


def _bits(report: Report) -> float:
    """Bits per weight as written; without a measurement, enough to claim nothing."""
    return number(section(report, "size"), "bits_per_weight") or 32.0


def _generates(report: Report) -> bool:
    """Whether onnxruntime-genai runs it."""
    known = task(report)
    return known is not None and known.runtime == "onnxruntime-genai"


def _parameters(report: Report) -> list[Mapping[str, Any]]:
    """Those of each pass."""
    return [section(step, "parameters") for step in entries(report, "passes")]


def _opening(report: Report) -> str:
    source, target = section(report, "source"), section(report, "target")
    architecture, provider = source.get("architecture"), target.get("provider")
    what = f"`{_code(model_name(report))}`" + (f" ({_inline(architecture)})" if architecture else "")
    where = f" for {_inline(provider)}" if provider else ""
    said = verdict(report)
    why = "".join(f"\n> - {_inline(reason)}" for reason in reasons(report))
    title, form = (
        ("pressed to ONNX", f"an ONNX model{where}") if _is_onnx(report) else ("quantized", "a Hugging Face folder")
    )
    if _is_adapter(report):
        title, form = "with an adapter", "a Hugging Face folder (`model`) and a PEFT adapter for it (`adapter`)"
    return (
        f"# {_inline(model_name(report))}, {title}\n\nThis is {what} as {form}, made by"
        f" [coldpress](https://pypi.org/project/coldpress/).\n\n> **{said.title}.** {said.meaning}\n>{why or ''}\n"
    )


def sample_code(report: Report) -> str:
    """A program that runs the model in the folder it is started in."""
    if _is_adapter(report):
        return RUN_ADAPTER
    if not _is_onnx(report):
        return RUN_TRANSFORMERS
    if not _generates(report):
        return RUN_SESSION
    adapters = entries(report, "adapters")
    return _with_adapter(adapters[0]) if adapters else RUN_GENERATION


def _with_adapter(adapter: Mapping[str, Any]) -> str:
    """The program, the model in its folder beside the report, with an adapter that is switched on."""
    file, name = json.dumps(f"model/{adapter['file']}"), json.dumps(adapter["name"])
    return (
        RUN_GENERATION.replace('og.Model(".")  # this folder', 'og.Model("model")  # the folder in this one')
        .replace("tokenizer =", f"adapters = og.Adapters(model)\nadapters.load({file}, {name})\ntokenizer =", 1)
        .replace(
            "generator.append",
            f"generator.set_active_adapter(adapters, {name})  # leave this out for the base alone\ngenerator.append",
            1,
        )
    )


def _usage(report: Report) -> str:
    if not _is_onnx(report):
        return _usage_of_folder(report)
    package, code = "onnxruntime-genai" if _generates(report) else "onnxruntime", sample_code(report)
    return f"## Run it\n\n{_fence(f'pip install {package}', 'bash')}\nThen, in this folder:\n\n{_fence(code, 'python')}"


def _usage_of_folder(report: Report) -> str:
    """How a Hugging Face folder is loaded, and pressed."""
    form = next((str(found["format"]) for found in _parameters(report) if "format" in found), "")
    packages, remark = _LOADERS.get(form, _LOADERS["compressed-tensors"])
    code = RUN_TRANSFORMERS
    if why := _refused(entries(report, "layers")):
        packages += " coldpress"
        code = f"from coldpress.models.packed.loading import register\n{code}\n"
        code = code.replace(
            "\ntokenizer =", f"\nregister()  # transformers 5.23 itself refuses {why}\n\ntokenizer =", 1
        )
    needs = _fence(f"pip install {packages}", "bash")
    press = _fence("coldpress auto-opt -m . -o ../onnx", "bash")
    return (
        f"## Run it\n\n{needs}\nThen, in this folder:\n\n{_fence(code, 'python')}{remark}\n"
        f"As an ONNX model, with exactly these codes:\n\n{press}"
    )


def _usage_of_adapter(report: Report) -> str:
    """How base and adapter are loaded together, and pressed."""
    press = _fence("coldpress auto-opt -m model --adapter_path adapter -o ../onnx", "bash")
    return (
        f"## Run it\n\n{_fence('pip install transformers peft', 'bash')}\nThen, in this folder:\n\n"
        f"{_fence(RUN_ADAPTER, 'python')}\nAs an ONNX model that takes the adapter, and others, at run time:\n\n{press}"
    )


def _refused(layers: list[Mapping[str, Any]]) -> str:
    """What of these layers transformers does not load without help; empty for nothing."""
    grids = {(layer.get("bits"), layer.get("symmetric")) for layer in layers}
    of_experts = {
        (layer.get("bits"), layer.get("symmetric")) for layer in layers if ".experts." in str(layer.get("name"))
    }
    if len(of_experts) > 1:
        return "experts of mixed bits"
    if any(not symmetric for _, symmetric in of_experts):
        return "zero points of experts"
    mixed = len(grids) > 1 and any(not symmetric for _, symmetric in grids)
    return "zero points of mixed bits" if mixed else ""


def _quality(report: Report) -> str:
    rows = [_row(fact) for fact in facts(report)]
    on = measured_on(report)
    note = f"Quality was measured on {_inline(on)}. " if on else ""
    machine = ", ".join(f"{_inline(k)} {_inline(v)}" for k, v in section(report, "machine").items())
    where = f"Speed depends on the machine; here: {machine}.\n" if machine else ""
    return "\n".join(
        ["## Size and quality", "", "| | source | this model |", "|---|---:|---:|", *rows, "", note + where]
    )


def _row(fact: Fact) -> str:
    beside = f" ({fact.change})" if fact.change else ""
    return f"| {_inline(fact.name)} | {_inline(fact.source)} | {_inline(fact.model + beside)} |"


def _making(report: Report) -> str:
    lines = ["## How it was made", ""]
    lines += [_step(index, step) for index, step in enumerate(entries(report, "passes"), start=1)]
    if command := report.get("command"):
        lines += ["", _fence(plain(command), "bash")]
    own = {"coldpress": report["coldpress"]} if report.get("coldpress") else {}
    versions = ", ".join(f"{_inline(k)} {_inline(v)}" for k, v in {**own, **section(report, "versions")}.items())
    lines += ["", f"Versions: {versions}.", ""] if versions else [""]
    return "\n".join([*lines, "## Licence", "", "See the source model: its licence holds for this one too.", ""])


def _step(index: int, step: Mapping[str, Any]) -> str:
    chosen = ", ".join(f"`{_code(f'{key}={plain(value)}')}`" for key, value in section(step, "parameters").items())
    return f"{index}. {_inline(step.get('name', ''))}{f': {chosen}' if chosen else ''}"


def _inline(value: Any) -> str:
    """Text that stays text: one line, no Markdown and no HTML of its own."""
    line = " ".join(plain(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def _code(value: str) -> str:
    return " ".join(value.split()).replace("`", "'")


def _fence(code: str, language: str) -> str:
    """A code block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}\n"
