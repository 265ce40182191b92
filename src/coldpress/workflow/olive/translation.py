"""A whole configuration: which part of it is read when, and what becomes of the engine's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldpress import parts
from coldpress.errors import did_you_mean
from coldpress.parts.schema import Misfit, build, plain
from coldpress.workflow import Step, Workflow
from coldpress.workflow.olive.data import read_data
from coldpress.workflow.olive.evaluators import read_metrics
from coldpress.workflow.olive.models import read_model
from coldpress.workflow.olive.passes import Passes
from coldpress.workflow.olive.reading import Log, Section
from coldpress.workflow.olive.strategy import read_auto_optimizer, read_strategy
from coldpress.workflow.olive.systems import client_of, read_systems
from coldpress.workflow.olive.tables import names

_OUTPUT = "models/optimized"
_OLIVES = ("input_model", "engine", "systems", "evaluators", "data_configs", "search_strategy", "pass_flows")


def is_olive(data: Mapping[str, Any]) -> bool:
    """Whether plain data is a configuration of Olive's."""
    return "model" not in data and (any(key in data for key in _OLIVES) or isinstance(data.get("passes"), Mapping))


@dataclass(frozen=True)
class Translation:
    """A configuration as a workflow: plain data, notes on what differs, and problems that keep it from running."""

    workflow: dict[str, Any]
    notes: list[str]
    problems: list[Misfit]

    def raise_problems(self) -> None:
        """Raise the first problem, and say how many there are."""
        if not self.problems:
            return
        first, more = self.problems[0], len(self.problems) - 1
        told = f" (and {more} more; `coldpress migrate` lists them)" if more else ""
        raise Misfit(first.place, f"{first.problem}{told}", first.hint)


def translate(config: Mapping[str, Any]) -> Translation:
    """Translate a configuration whole; never raises for what is in it."""
    log = Log()
    root = Section(config, "", log, ("engine",))
    client = client_of(root)
    source = read_model(root, client)
    workflow: dict[str, Any] = {"model": source.name or "unknown"}
    workflow |= {"trust_remote_code": True} if source.trust_remote_code else {}
    data = read_data(root, source, client)
    place, target, measured = read_systems(root, client)
    searches, opens = read_strategy(root, workflow)
    passes = Passes(log, searches, opens, data, root.take("evaluator"), root.take("host"), workflow)
    steps = passes.read(root)
    if not steps and not root.take("passes"):
        steps = read_auto_optimizer(root, source.kind, searches)
    elif root.take("auto_optimizer_config") is not None:
        given = root.take("auto_optimizer_config")
        root.log.note(root.place_of("auto_optimizer_config"), "no effect here: the passes are named", given)
    if searches and (steps or not root.take("passes")) and not any(step.is_open for step in steps):
        given = root.take("search_strategy")
        root.log.note(root.place_of("search_strategy"), "nothing is left open, so there is nothing to search", given)
        workflow.pop("search")
    if source.kind == "script":
        steps = _exported(steps, source.loading, root)
    if source.adapter:
        steps = _with_adapter(steps, source.adapter, root)
    workflow["passes"] = [_concise(step) for step in steps]
    workflow |= {"target": target} if target else {}
    workflow |= place
    workflow |= {"data": data.sources} if data.sources else {}
    metrics = read_metrics(root, data, searches)
    if measured is not None and metrics:
        metrics = [{**metric, "system": measured} for metric in metrics]
    elif measured is not None:
        root.log.note(root.place_of("target"), "no effect: no metric is asked for that could be measured there")
    workflow |= {"metrics": metrics} if metrics is not None else {}
    workflow |= _output(root, bool(steps))
    root.close("root")
    _note_client(root, workflow)
    if not log.problems:
        log.attempt("", lambda: build(Workflow, workflow))
    return Translation(_in_order(workflow), log.notes, log.problems)


def _note_client(root: Section, workflow: Mapping[str, Any]) -> None:
    """Say what of a workspace of Azure ML nothing needs: jobs there need all of it, files its address."""
    client, is_job = root.inner("azureml_client"), workflow.get("system", {}).get("type") == "azure_ml"
    needed = () if "/workspaces/" not in str(workflow) else ("subscription_id", "resource_group", "workspace_name")
    for key in names("client_parameters") if not is_job else ():
        if key in client and key not in needed:
            root.log.note(client.place_of(key), "no effect: no job runs there", client.take(key))


def _exported(steps: list[Step], loading: Mapping[str, Any], root: Section) -> list[Step]:
    """The steps, with the export of a module in place of a press, and in front of all where there is none."""
    found, precision = list[Step](), {}
    for step in steps:
        if step.type != "press":
            found.append(step)
            continue
        asked = step.parameters.get("precision", "int4")
        if asked not in ("fp32", "fp16"):
            hint = "use OnnxConversion, and a pass that quantizes behind it"
            root.log.refuse("passes", f"a module of a script is not built in {asked}", hint)
        precision = {"precision": asked} if asked == "fp16" else {}
    return [Step("onnx_conversion", {**loading, **precision}), *found]


def _with_adapter(steps: list[Step], adapter: str, root: Section) -> list[Step]:
    """The steps, with one that puts an adapter onto the model in front of the first that takes a model with one."""
    for index, step in enumerate(steps):
        if all("adapter" in parts.find("passes", one.type).accepts for one in step.any_of or (step,)):
            return [*steps[:index], Step("attach_adapters", {"adapter_path": [adapter]}), *steps[index:]]
    place = f"{root.place_of('input_model')}.adapter_path"
    root.log.refuse(place, "none of the passes takes a model with an adapter", "add a pass such as OnnxConversion")
    return steps


def _concise(step: Step) -> dict[str, Any]:
    """A step as one would write it, without what it does not use."""
    found = {key: value for key, value in plain(step).items() if value}
    if step.any_of:
        found["any_of"] = [_concise(one) for one in step.any_of]
    return found


def _in_order(workflow: Mapping[str, Any]) -> dict[str, Any]:
    return {key: workflow[key] for key in Workflow.__dataclass_fields__ if key in workflow}


def _output(root: Section, makes_one: bool) -> dict[str, Any]:
    """Output, packages, cache and log; a configuration that makes no model needs no place for one."""
    output = root.take("output_dir", of=str)
    if output is None and not makes_one:
        return _without_output(root)
    if output is None:
        output = _OUTPUT
        root.log.note("output_dir", f"not given: the result goes to {output}")
    elif output == _OUTPUT:
        root.anyway("output_dir")
    if name := root.take("output_name", of=str):
        output = f"{output.rstrip('/')}/{name}"
    found: dict[str, Any] = {"output": output}
    if packages := [
        package for place, item in root.items("packaging_config") if (package := _package(root, place, item))
    ]:
        found["packaging"] = packages
    if root.take("no_artifacts", False, of=bool):
        found["artifacts"] = False
    running = _running(root)
    return {**found, "run": running} if running else found


def _without_output(root: Section) -> dict[str, Any]:
    for key in ("output_name", "packaging_config", "no_artifacts"):
        if key in root:
            root.log.note(
                root.place_of(key), "no effect: nothing is written without passes and an output_dir", root.take(key)
            )
    running = _running(root)
    return {"run": running} if running else {}


def _running(root: Section) -> dict[str, Any]:
    cache = root.inner("cache_config")
    inner = cache.take("cache_dir")
    folder = root.take("cache_dir", inner)
    if inner is not None and folder != inner:
        root.log.note(cache.place_of("cache_dir"), f"no effect: {root.place_of('cache_dir')} counts")
    if isinstance(folder, list):  # a local folder, and one in the cloud
        if len(folder) > 1:
            root.log.refuse(root.place_of("cache_dir"), "the cache is one folder", "name a folder that all can reach")
        folder = next(iter(folder), None)
    found = {
        "cache_dir": folder,
        **_shared(cache),
        "clean_cache": root.take("clean_cache", cache.take("clean_cache", False, of=bool), of=bool),
        "log_level": root.take("log_severity_level", of=int),
        "log_to_file": root.take("log_to_file", False, of=bool),
    }
    cache.close("cache_config")
    return {
        key: value for key, value in found.items() if value not in (None, False) or (key, value) == ("log_level", 0)
    }


def _shared(cache: Section) -> dict[str, Any]:
    """The container of Azure Blob where results are shared."""
    is_on = cache.take("enable_shared_cache", False, of=bool)
    names = {key: cache.take(key, of=str) for key in ("account_name", "container_name")}
    updates = cache.take("update_shared_cache", True, of=bool)
    if not is_on:
        for key, name in names.items():
            if name:
                cache.log.note(cache.place_of(key), "no effect: enable_shared_cache is off", name)
        return {}
    missing = [key for key, name in names.items() if not name]
    if missing:
        cache.log.refuse(
            cache.place_of("enable_shared_cache"), f"it lacks {' and '.join(missing)}", "name them beside it"
        )
    url = "abfs://{container_name}@{account_name}.dfs.core.windows.net/coldpress".format(**names)
    return {"cache": url, "cache_read_only": not updates}


def _package(root: Section, place: str, item: Any) -> dict[str, Any] | None:
    section = Section(item, place, root.log, ("config",))
    wanted = section.take("type", "Zipfile", of=str)
    known = {name.lower(): entry for name, entry in names("packagings").items()}
    entry = known.get(wanted.lower())
    if not isinstance(entry, str):
        hint = entry["instead"] if entry else did_you_mean(wanted, names("packagings"))
        problem = f"packages of type {wanted} are not made" if entry else f"there is no packaging '{wanted}'"
        root.log.refuse(section.place_of("type"), problem, hint)
        section.leave("not read")
        return None
    if "type" in section and entry == "zipfile":
        section.anyway("type")
    keys = ("name", "base_image", "requirements_file")
    if section.take("export_in_mlflow_format", False, of=bool):
        if entry != "zipfile":
            root.log.refuse(
                section.place_of("export_in_mlflow_format"), "an image is not in MLflow's format", "use Zipfile"
            )
        entry = "mlflow"
    found = {"type": entry, **{key: value for key in keys if (value := section.take(key, of=str)) is not None}}
    section.close("packaging")
    return found
