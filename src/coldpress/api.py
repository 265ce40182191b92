"""The Python API: the verbs of the command line as functions, with the same names and defaults."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress import parts
from coldpress.errors import ColdpressError, NotAtHand
from coldpress.jobs.store import Store, shared
from coldpress.parts import schema
from coldpress.runs.engine import Console, Report, verify_pressed
from coldpress.runs.engine import run as _run
from coldpress.runs.report_data import source_in_report
from coldpress.runs.verification import Verdict
from coldpress.target import Target, resolve_target
from coldpress.workflow import Running, Step, Verify, Workflow, recipes
from coldpress.workflow.calibration_data import CALIBRATING, with_data
from coldpress.workflow.file import load_workflow

if TYPE_CHECKING:
    from coldpress.serving.chat import Conversation

_TARGET = ("device", "provider", "threads")
#: where results go when nothing else is said
OUTPUT, QUANTIZED, TUNED, PASS_OUTPUT = "models/optimized", "models/quantized", "models/finetuned", "models/run-pass"
CAPTURED = "models/captured"


def optimize_workflow(
    model_name_or_path: str | Path | None = None, output_path: str | Path | None = OUTPUT, **options: Any
) -> Workflow:
    """The workflow behind ``auto-opt`` and ``optimize``.

    ``options``: ``device``, ``provider``, ``threads``, ``no_verify``, ``tolerance``, ``eval_data``, ``verify_memory``
    (gigabytes), ``trust_remote_code``, ``adapter_path`` (PEFT folders), ``model_script`` and ``script_dir`` (a module
    of PyTorch that a script makes), and the parameters of the pass ``press``.
    """
    return _workflow(model_name_or_path, output_path, recipes.press_recipe, options)


def _workflow(
    model: str | Path | None,
    output: str | Path | None,
    recipe: Callable[[dict[str, Any], Target], tuple[Step, ...]],
    options: dict[str, Any],
) -> Workflow:
    """The workflow of a recipe: the options that are not the recipe's say for what target, and how it is verified."""
    target = resolve_target(**{name: options.pop(name) for name in _TARGET if name in options})
    texts = tuple(map(str, options.pop("eval_data", ())))
    limit, memory = options.pop("tolerance", None), options.pop("verify_memory", None)
    verify = Verify(not options.pop("no_verify", False), limit, texts, memory)
    trust = bool(options.get("trust_remote_code"))
    loading = {name: options.pop(name) for name in recipes.LOADING if name in options}
    source, first = recipes.source_of(model, **loading)
    workflow = Workflow(
        model=source,
        passes=(*first, *recipe(options, target)),
        target=target,
        output=None if output is None else str(output),
        verify=verify,
        trust_remote_code=trust,
    )
    for step in workflow.passes:
        step.make()
    return workflow


def optimize(
    model_name_or_path: str | Path | None = None,
    output_path: str | Path | None = OUTPUT,
    *,
    model_script: str | Path | None = None,
    script_dir: str | Path | None = None,
    precision: str | None = None,
    algorithm: str | None = None,
    rotation: str | None = None,
    adapter_path: Sequence[str | Path] = (),
    block_size: int | None = None,
    symmetric: bool | None = None,
    head_bits: int | None = None,
    embedding_bits: int | None = None,
    promote: str | None = None,
    accuracy_level: int | None = None,
    scale_dtype: str | None = None,
    modules_to_not_convert: Sequence[str] = (),
    use_ort_genai: bool | None = None,
    task: str | None = None,
    logits: str | None = None,
    exporter: str | None = None,
    hidden_states: bool = False,
    filename: str | None = None,
    search: Mapping[str, Any] | None = None,
    tune_session_params: bool = False,
    data: Mapping[str, Any] | None = None,
    data_name: str | None = None,
    data_files: Sequence[str | Path] = (),
    text_template: str | None = None,
    use_chat_template: bool | None = None,
    max_seq_len: int | None = None,
    num_samples: int | None = None,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    eval_data: Sequence[str | Path] = (),
    tolerance: str | None = None,
    verify_memory: float | None = None,
    no_verify: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **others: Any,
) -> Report:
    """Turn a model into a verified ONNX model in the folder ``output_path`` (None: leave it in the cache).

    Options are those of ``coldpress auto-opt``; what is left out has its default. Raises ColdpressError, also for
    ``others``, with the closest option; a model that is worse than its tolerance is written, and ``Report.exit_code``
    is 3.
    """
    return _made(optimize, optimize_workflow, locals())


auto_opt = optimize


def capture_workflow(
    model_name_or_path: str | Path | None = None, output_path: str | Path | None = CAPTURED, **options: Any
) -> Workflow:
    """The workflow behind ``capture-onnx-graph``; ``options`` as in `capture_onnx_graph`."""
    recipe = lambda given, _target: recipes.capture_recipe(given)  # noqa: E731
    return _workflow(model_name_or_path, output_path, recipe, options)


def capture_onnx_graph(
    model_name_or_path: str | Path | None = None,
    output_path: str | Path | None = CAPTURED,
    *,
    model_script: str | Path | None = None,
    script_dir: str | Path | None = None,
    io_config: Mapping[str, Any] | None = None,
    adapter_path: Sequence[str | Path] = (),
    task: str | None = None,
    precision: str | None = None,
    exporter: str | None = None,
    fixed: Mapping[str, int] | None = None,
    target_opset: int | None = None,
    block_size: int | None = None,
    accuracy_level: int | None = None,
    use_ort_genai: bool | None = None,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    eval_data: Sequence[str | Path] = (),
    tolerance: str | None = None,
    verify_memory: float | None = None,
    no_verify: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **others: Any,
) -> Report:
    """Turn a PyTorch model into an ONNX graph in float32, or ``precision``, verified, and do nothing else to it.

    ``fixed``: sizes of open axes by their names. ``io_config``: what a module takes, instead of what its script says.
    ``exporter``: mobius or torch_export. Raises ColdpressError, also for ``others``, with the closest option.
    """
    return _made(capture_onnx_graph, capture_workflow, locals())


def quantize_workflow(
    model_name_or_path: str | Path | None = None, output_path: str | Path | None = QUANTIZED, **options: Any
) -> Workflow:
    """The workflow behind ``quantize``; ``options`` as in `optimize_workflow`, with the parameters of the pass
    ``quantize``."""
    recipe = lambda given, _target: recipes.quantize_recipe(given)  # noqa: E731
    return _workflow(model_name_or_path, output_path, recipe, options)


def quantize(
    model_name_or_path: str | Path | None = None,
    output_path: str | Path | None = QUANTIZED,
    *,
    model_script: str | Path | None = None,
    script_dir: str | Path | None = None,
    algorithm: str | None = None,
    precision: str | None = None,
    rotation: str | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    format: str | None = None,
    lm_head: bool | None = None,
    embeddings: bool | None = None,
    head_bits: int | None = None,
    promote: str | None = None,
    target_bits: float | None = None,
    max_size: str | None = None,
    modules_to_not_convert: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    data_name: str | None = None,
    data_files: Sequence[str | Path] = (),
    text_template: str | None = None,
    use_chat_template: bool | None = None,
    max_seq_len: int | None = None,
    num_samples: int | None = None,
    max_memory: float | None = None,
    polish_seconds: float | None = None,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    eval_data: Sequence[str | Path] = (),
    tolerance: str | None = None,
    verify_memory: float | None = None,
    no_verify: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **others: Any,
) -> Report:
    """Quantize a model's weights, calibrated, into a Hugging Face folder that transformers loads and `optimize`
    presses.

    Options are those of ``coldpress quantize``; what is left out has its default. Raises ColdpressError, also for
    ``others``, with the closest option.
    """
    return _made(quantize, quantize_workflow, locals())


def finetune_workflow(
    model_name_or_path: str | Path, output_path: str | Path | None = TUNED, **options: Any
) -> Workflow:
    """The workflow behind ``finetune``; ``options`` as in `finetune`.

    Without a device it is a GPU where torch finds one.
    """
    for name in ("eval_data", "no_verify", "tolerance", "verify_memory"):
        if name in options:
            hint = "rows held out are the verdict: eval_files, eval_split or eval_dataset_size"
            raise ColdpressError(f"{name} has no effect on finetune", hint=hint)
    if "device" not in options and "provider" not in options:
        import torch

        options["device"] = "gpu" if torch.cuda.is_available() else "cpu"
    fresh, seed = options.pop("fresh", False), options.pop("seed", 0)
    recipe = lambda given, _target: recipes.finetune_recipe(given)  # noqa: E731
    workflow = _workflow(model_name_or_path, output_path, recipe, options)
    return replace(workflow, seed=seed, run=Running(clean_cache=fresh))


def finetune(
    model_name_or_path: str | Path,
    output_path: str | Path | None = TUNED,
    *,
    data_name: str | None = None,
    data_files: Sequence[str | Path] = (),
    text_template: str | None = None,
    text_field: Sequence[str] = (),
    use_chat_template: bool | None = None,
    train_subset: str | None = None,
    train_split: str | None = None,
    eval_subset: str | None = None,
    eval_split: str | None = None,
    eval_files: Sequence[str | Path] = (),
    eval_dataset_size: float | None = None,
    max_seq_len: int | None = None,
    max_samples: int | None = None,
    answers_only: bool | None = None,
    method: str | None = None,
    lora_r: int | None = None,
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
    target_modules: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    packing: bool | None = None,
    torch_dtype: str | None = None,
    training_args: Mapping[str, Any] | None = None,
    double_quant: bool | None = None,
    quant_type: str | None = None,
    loftq_iter: int | None = None,
    rank_dropout: float | None = None,
    module_dropout: float | None = None,
    decompose_both: bool | None = None,
    decompose_factor: int | None = None,
    rank_dropout_scale: bool | None = None,
    seed: int = 0,
    fresh: bool = False,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **others: Any,
) -> Report:
    """Train an adapter on a float or a quantized model; ``output_path`` gets ``model`` (the base as it was) and
    ``adapter`` (PEFT's).

    Options are those of ``coldpress finetune``, with ``training_args={"max_steps": 100}`` for fields of
    TrainingArguments, and ``fresh=True`` not to go on from a run that was stopped. Raises ColdpressError, also for
    ``others``, with the closest option; where the loss on rows held out did not fall, ``Report.exit_code`` is 3.
    """
    return _made(finetune, finetune_workflow, locals())


def _made(function: Callable[..., Report], build: Callable[..., Workflow], arguments: dict[str, Any]) -> Report:
    """Run the workflow that a function was called for; ``build`` gets the arguments that differ from their defaults."""
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    others = arguments.pop("others")
    given = {**arguments, **others}
    overwrite, cache_dir = given.pop("overwrite"), given.pop("cache_dir")
    output = {"output_path": given.pop("output_path")}
    options = {name: schema.plain(value) for name, value in given.items() if value is not defaults.get(name, given)}
    workflow = build(**options, **output)
    running = replace(workflow.run, cache_dir=str(cache_dir)) if cache_dir else workflow.run
    return _run(replace(workflow, run=running), store=running.open_store(), overwrite=overwrite)


def run(
    workflow: Workflow | dict[str, Any] | str | Path, *, overwrite: bool = False, cache_dir: str | Path | None = None
) -> Report:
    """Run a workflow: an object, plain data, or a YAML or JSON file, of coldpress's own form or Olive's.

    With ``run: {log_level: 1}`` or 0 in it, finished steps are told on stderr. Keys of an Olive file that have no
    effect are logged as warnings.
    """
    checked = (
        workflow if isinstance(workflow, Workflow) else load_workflow(workflow, logging.getLogger(__name__).warning)
    )
    running = replace(checked.run, cache_dir=str(cache_dir)) if cache_dir else checked.run
    return _run(checked, store=running.open_store(), console=_console(checked), overwrite=overwrite)


def _console(workflow: Workflow) -> Console:
    if workflow.run.log_level not in (0, 1):
        return Console()
    return Console(say=lambda line: print(line, file=sys.stderr, flush=True))


def run_pass(
    pass_name: str,
    model_name_or_path: str | Path,
    output_path: str | Path | None = PASS_OUTPUT,
    *,
    overwrite: bool = False,
    cache_dir: str | Path | None = None,
    **parameters: Any,
) -> Report:
    """Run one pass on a model. From ONNX to ONNX the result is compared with the source; all else is only opened.

    ``parameters``: the pass's fields, and ``device``, ``provider``, ``threads``; ``verify=False`` compares nothing. For
    passes that calibrate ``data_files``, ``max_seq_len`` and the like may stand in place of ``data``.
    """
    workflow = pass_workflow(pass_name, model_name_or_path, output_path, **parameters)
    return _run(workflow, store=shared(cache_dir), overwrite=overwrite)


def pass_workflow(
    pass_name: str, model_name_or_path: str | Path, output_path: str | Path | None = PASS_OUTPUT, **parameters: Any
) -> Workflow:
    """The workflow behind ``run-pass``: one pass, nothing measured; verified where the pass asks for it, and from ONNX
    to ONNX."""
    target = resolve_target(**{key: parameters.pop(key) for key in _TARGET if key in parameters})
    part, name = parts.find("passes", pass_name), parts.file_name(pass_name)
    can_be = part.is_verified or (part.accepts == ("onnx",) and part.produces == "onnx")
    is_verified = parameters.pop("verify", True) and not parameters.pop("no_verify", False) and can_be
    return Workflow(
        model=str(model_name_or_path),
        passes=(Step(name, with_data(parameters) if name in CALIBRATING else parameters),),
        target=target,
        output=None if output_path is None else str(output_path),
        verify=Verify(is_verified),
        metrics=(),
        trust_remote_code=bool(parameters.get("trust_remote_code")),
    )


def plan(model_name_or_path: str | Path, **options: Any) -> dict[str, Any]:
    """What ``optimize`` with these options would cost: seconds, memory, disk and output bytes."""
    from coldpress.runs.forecast import plan as _plan

    return _plan(optimize_workflow(model_name_or_path, **options))


def evaluate(
    *models: str | Path,
    metrics: Sequence[str] = ("size", "perplexity"),
    source: str | Path | None = None,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Measure models, of any kind that a verb takes; a mapping of each metric to its numbers for each of them.

    ``source``: what the metric ``divergence`` compares with.
    """
    from coldpress.runs.evaluation import evaluate as measured

    return measured(
        [str(model) for model in models],
        metrics,
        source=None if source is None else str(source),
        target=resolve_target(device, provider, threads),
        store=shared(cache_dir),
    )


def benchmark(
    *models: str | Path,
    metric: str = "generation",
    rounds: int = 3,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    repeats: int | None = None,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Speed of models, taken in turns; for each its numbers, as the middle and half the width of what was measured."""
    from coldpress.runs.evaluation import benchmark as timed

    settings: dict[str, Any] = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    return timed(
        [str(model) for model in models],
        metric=metric,
        rounds=rounds,
        target=resolve_target(device, provider, threads),
        store=shared(cache_dir),
        **{name: value for name, value in settings.items() if value is not None},
    )


def verify(
    model_name_or_path: str | Path,
    source: str | Path | None = None,
    *,
    tolerance: str | None = None,
    eval_data: Sequence[str | Path] = (),
    verify_memory: float | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    provider: str | None = None,
    threads: int = 0,
    cache_dir: str | Path | None = None,
) -> Verdict:
    """Compare a model with the one that it was made from: ``source``, or what the report beside it names.

    ``Verdict.verdict`` is "verified", "worse than tolerance" or "unverified"; ``numbers`` holds what was measured.
    """
    target = resolve_target(device, provider, threads)
    request = Verify(True, tolerance, tuple(map(str, eval_data)), verify_memory)
    original = source_in_report(Path(model_name_or_path)) if source is None else str(source)
    workflow = Workflow(original, target=target, verify=request, trust_remote_code=trust_remote_code)
    return verify_pressed(str(model_name_or_path), workflow, shared(cache_dir))


def chat(
    model_name_or_path: str | Path,
    *,
    system: str | None = None,
    adapters: Mapping[str, str | Path] = {},
    max_new_tokens: int | None = None,
    greedy: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    threads: int = 0,
    cache_dir: str | Path | None = None,
) -> Conversation:
    """A conversation with a pressed model; any other model is pressed first, and kept in the cache.

    ``for piece in chat("models/out").ask("Hello")`` gives the answer as it is made; `Conversation` remembers what was
    said. Settings that are left out are those that the model's makers recommend. ``adapters``: adapter files by the
    names they get, of which the first one answers until `Conversation.use`.
    """
    from coldpress.serving.chat import Conversation
    from coldpress.serving.engine import Engine, check_choices, chosen_sampling

    drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": repetition_penalty}
    check_choices(greedy, seed=seed, **drawn)
    folder = pressed(str(model_name_or_path), shared(cache_dir))
    sampling = chosen_sampling(folder, greedy, max_new_tokens=max_new_tokens, seed=seed, **drawn)
    engine = Engine(folder, threads, {name: Path(file) for name, file in adapters.items()})
    return Conversation(engine, system, sampling, next(iter(adapters), None))


def servable(name: str, store: Store, console: Console = Console()) -> Path:
    """The folder of a model that can be served: an encoder as it is, all else as `pressed`."""
    from coldpress.models.onnx_folder import read_genai_config

    folder = Path(name).expanduser()
    inner = folder / "model"
    if any(read_genai_config(place) for place in (folder, inner)) or not any(folder.glob("*.onnx")):
        return pressed(name, store, console)
    return folder


def pressed(name: str, store: Store, console: Console = Console()) -> Path:
    """The folder of a pressed model that can chat; any other model is pressed first, and kept in the store."""
    from coldpress.models.sources import find_model
    from coldpress.serving.chat import model_folder

    try:
        model = find_model(name)
    except NotAtHand as error:
        hint = f"{error.hint}; or name the folder that coldpress auto-opt wrote"
        raise NotAtHand(error.message, hint=hint) from error
    if model.format == "onnx":
        return model_folder(Path(name).expanduser())
    console.say(f"{name} is no pressed model: it is pressed now as auto-opt does it, and kept in the cache")
    report = _run(optimize_workflow(name, None), store=store, console=console)
    console.say(f"{report.data['verdict']}: coldpress auto-opt {name} writes it with its report")
    return report.model.path
