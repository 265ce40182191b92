"""``input_model``: Hugging Face and ONNX models in all the shapes Olive has had, as one path, hub id or URI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from coldpress import azure
from coldpress.errors import did_you_mean
from coldpress.olive_config.reading import Log, Section
from coldpress.olive_config.tables import names


@dataclass(frozen=True)
class Source:
    """The model: ``name`` as coldpress takes it; what it is for. ``dataset``: data that old configurations put beside it.

    ``adapter``: a PEFT folder that is put onto it.
    """

    name: str = ""
    trust_remote_code: bool = False
    kind: str = "hf"
    task: str = ""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""


def read_model(root: Section, client: Mapping[str, Any]) -> Source:
    """The input model; ``client`` is the workspace in which Azure ML's resources lie."""
    log = root.log
    if "input_model" not in root:
        log.refuse("input_model", "there is no input_model", "name it: {type: HfModel, model_path: ...}")
        return Source()
    model = root.inner("input_model", ("config",))
    kind = _kind(model)
    if kind is None:
        return Source()
    hf = model.inner("hf_config")
    path = model.take("model_path")
    named = hf.take("model_name", hf.take("model_path", of=str), of=str)
    name = path if path is not None else named
    source = Source(
        name=_joined(resource(name, model.place_of("model_path"), log, client), model.take("onnx_file_name", of=str)),
        trust_remote_code=any([_loading(model), _loading(hf)]),
        kind=kind,
        task=model.take("task", "", of=str) or hf.take("task", "", of=str),
        dataset=hf.take("dataset", {}, of=dict),
        adapter=resource(model.take("adapter_path"), model.place_of("adapter_path"), log, client),
    )
    if not source.name:
        hint = "pass it in model_path" if kind == "hf" else "name its file in model_path"
        log.refuse(model.place, "the model has no path and no name", hint)
    hf.close("hf_config")
    model.close("model")
    return source


def _kind(model: Section) -> str | None:
    """``hf`` or ``onnx``; None, and a problem, for a kind that is not read."""
    wanted = model.take("type", "HfModel", of=str)
    known = {name.lower(): entry for name, entry in names("models").items()}
    entry = known.get(wanted.lower())
    if isinstance(entry, str):
        return entry
    place = model.place_of("type")
    if entry is None:
        model.log.refuse(place, f"there is no type of model '{wanted}'", did_you_mean(wanted, names("models")))
    else:
        model.log.refuse(place, f"models of type {wanted} are not read", entry["instead"])
    return None


def _loading(section: Section) -> bool:
    """Reads how the model is loaded; whether its code may run."""
    trusted = section.take("trust_remote_code", False, of=bool)
    for name in ("load_kwargs", "from_pretrained_args", "model_loading_args", "loading_args"):
        arguments = section.inner(name, ("extra_args",))
        trusted |= arguments.take("trust_remote_code", False, of=bool)
        arguments.close("load_kwargs")
    return trusted


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
