"""``input_model``: Hugging Face and ONNX models in all the shapes Olive has had, as one path, hub id or URI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from coldpress.errors import did_you_mean
from coldpress.models import azure
from coldpress.workflow.olive.reading import ANYWAY, Log, Section
from coldpress.workflow.olive.tables import names
from coldpress.workflow.recipes import source_of


@dataclass(frozen=True)
class Source:
    """The model: ``name`` as coldpress takes it; what it is for.

    ``dataset``: data that old configurations put beside it, and its place.

    ``adapter``: a PEFT folder that is put onto it. ``loading``: of a module that a script makes, ``name``,
    the parameters of the pass ``onnx_conversion``.
    """

    name: str = ""
    trust_remote_code: bool = False
    kind: str = "hf"
    task: str = ""
    dataset: tuple[Mapping[str, Any], str] | None = None
    adapter: str = ""
    loading: Mapping[str, Any] = field(default_factory=dict)


def read_model(root: Section, client: Mapping[str, Any]) -> Source:
    """The input model; ``client`` is the workspace in which Azure ML's resources lie."""
    log = root.log
    if "input_model" not in root:
        log.refuse("input_model", "there is no input_model", "name it: {type: HfModel, model_path: ...}")
        return Source()
    model = root.inner("input_model", ("config",))
    kind = _kind(model)
    if kind is None:
        model.leave("not read")
        return Source()
    hf = model.inner("hf_config")
    if kind == "hf" and "model_loader" in model:
        return _module(model, hf, client)
    path = model.take("model_path")
    name = path if path is not None else _name(hf)
    if path is not None and (named := _name(hf)):
        log.note(hf.place, f"{model.place_of('model_path')} is read, not {named}", {"model_name": named})
    dataset = hf.take("dataset", of=dict)
    source = Source(
        name=_joined(resource(name, model.place_of("model_path"), log, client), model.take("onnx_file_name", of=str)),
        trust_remote_code=_is_trusted(model, hf),
        kind=kind,
        task=_task(model, hf),
        dataset=(dataset, hf.place_of("dataset")) if dataset else None,
        adapter=resource(model.take("adapter_path"), model.place_of("adapter_path"), log, client),
    )
    if not source.name:
        hint = "pass it in model_path" if kind == "hf" else "name its file in model_path"
        log.refuse(model.place, "the model has no path and no name", hint)
    hf.close("hf_config")
    model.close("model")
    return source


#: what a script says of its module -> the parameter of the pass that exports it
_OF_SCRIPTS = {"model_loader": "loader", "dummy_inputs_func": "dummy_inputs", "io_config": "io_config"}


def _module(model: Section, hf: Section, client: Mapping[str, Any]) -> Source:
    """A module that a script makes."""
    path = resource(model.take("model_path"), model.place_of("model_path"), model.log, client) or _name(hf)
    script, folder = model.take("model_script", of=str), model.take("script_dir", of=str)
    loading = {ours: model.take(name) for name, ours in _OF_SCRIPTS.items()}
    is_trusted, task = _is_trusted(model, hf), _task(model, hf)
    if hf.take("dataset") is not None:
        model.log.refuse(hf.place_of("dataset"), "data beside a script is not read", "describe it in data_configs")
    hf.close("hf_config")
    model.close("model")
    if script is None:
        model.log.refuse(model.place, "nothing says which file the loader is in", "name it in model_script")
        return Source(kind="script")
    name, (step,) = source_of(path or None, script, folder)
    parameters = {**step.parameters, **{ours: one for ours, one in loading.items() if one is not None}}
    return Source(name=name, trust_remote_code=is_trusted, kind="script", task=task, loading=parameters)


def _name(hf: Section) -> str:
    """The hub id or folder in the older mapping ``hf_config``."""
    named, path = hf.take("model_name", "", of=str), hf.take("model_path", "", of=str)
    if named and path:
        hf.log.note(hf.place_of("model_path"), f"{hf.place_of('model_name')} is read")
    return str(named or path)


def _task(model: Section, hf: Section) -> str:
    """What the model is for, which matters to its data alone."""
    for section in (model, hf):
        if "task" in section:
            why = (
                "the model's own config says what it is, and data configs that name no task of their own are for"
                " this one"
            )
            model.log.note(section.place_of("task"), f"no effect on the model: {why}")
    return str(model.take("task", "", of=str) or hf.take("task", "", of=str))


def _kind(model: Section) -> str | None:
    """``hf`` or ``onnx``; None, and a problem, for a kind that is not read."""
    wanted = model.take("type", of=str) or "HfModel"
    known = {name.lower(): entry for name, entry in names("models").items()}
    entry = known.get(wanted.lower())
    if isinstance(entry, str):
        if "type" in model:
            model.log.note(model.place_of("type"), "no effect: what a path or a name stands for is found out")
        return entry
    place = model.place_of("type")
    if entry is None:
        model.log.refuse(place, f"there is no type of model '{wanted}'", did_you_mean(wanted, names("models")))
    else:
        model.log.refuse(place, f"models of type {wanted} are not read", entry["instead"])
    return None


def _is_trusted(*sections: Section) -> bool:
    """Reads how the model is loaded; whether its code may run."""
    places = [place for section in sections for place in _loading(section)]
    for place in places[1:]:
        sections[0].log.note(place, ANYWAY)
    return bool(places)


def _loading(section: Section) -> Iterator[str]:
    """The places that say that the model's code may run."""
    if section.take("trust_remote_code", False, of=bool):
        yield section.place_of("trust_remote_code")
    for name in ("load_kwargs", "from_pretrained_args", "model_loading_args", "loading_args"):
        arguments = section.inner(name, ("extra_args",))
        if arguments.take("trust_remote_code", False, of=bool):
            yield arguments.place_of("trust_remote_code")
        arguments.close("load_kwargs")


def _joined(folder: str, file: str | None) -> str:
    return str(PurePosixPath(folder) / file) if folder and file else folder


def resource(value: Any, place: str, log: Log, client: Mapping[str, Any]) -> str:
    """A path, a name, or a URI of Azure ML; from a string or from ``{type, config}``."""
    if value is None or isinstance(value, str):
        return value or ""
    section = Section(value, place, log, ("config",))
    wanted = section.take("type", "", of=str)
    kind = names("resources").get(wanted)
    if kind is None:
        hint = did_you_mean(wanted, names("resources"))
        log.refuse(section.place_of("type"), f"there is no type of resource '{wanted}'", hint)
        section.leave("not read")
        return ""
    if kind != "azure":
        found: str = section.take(kind, "", of=str)
        section.close("resource")
        return found
    made = log.attempt(place, lambda: _azure(wanted, section, client))
    section.close("resource")
    return made or ""


def _azure(kind: str, section: Section, client: Mapping[str, Any]) -> str:
    """The URI of a resource of Azure ML."""
    own = section.inner("azureml_client")
    facts = {
        name: own.take(name, client.get(name, "")) for name in ("subscription_id", "resource_group", "workspace_name")
    }
    own.close("azureml_client")
    workspace = azure.Workspace(*map(str, facts.values()))
    name, version = str(section.take("name", "")), str(section.take("version", ""))
    if kind == "azureml_registry_model":
        return azure.RegistryModel(str(section.take("registry_name", "azureml")), name, version).uri
    if kind == "azureml_model":
        return azure.WorkspaceModel(name, version, workspace).uri
    path = str(section.take("relative_path", ""))
    if kind == "azureml_job_output":
        return azure.JobOutput(str(section.take("job_name", "")), str(section.take("output_name", "")), path).uri
    url, datastore = section.take("datastore_url"), str(section.take("datastore_name", ""))
    return str(url) if url else azure.DatastorePath(datastore, path, workspace).uri
