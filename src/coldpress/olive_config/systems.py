"""``systems``, ``engine.host`` and ``engine.target``: one system where the work is done, and one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress.errors import did_you_mean
from coldpress.olive_config.reading import Section
from coldpress.olive_config.tables import names
from coldpress.target import resolve_target
from coldpress.workflow import Place


@dataclass(frozen=True)
class System:
    """A system of a configuration: what it is here, and the accelerator that it names."""

    type: str = "local"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    provider: str | None = None


def client_of(root: Section) -> dict[str, Any]:
    """The workspace of Azure ML that a configuration names for all that lies or runs there, under Olive's names."""
    client = root.inner("azureml_client")
    found = {theirs: client.take(theirs) for theirs in names("client_parameters") if theirs in client}
    client.close("azureml_client")
    return found


def read_systems(root: Section, client: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the workflow says of its system, and of its target; None when nothing names an accelerator."""
    defined = root.inner("systems")
    systems = {name: _read(defined.inner(name, ("config",)), client) for name, _ in list(defined.rest())}
    host = _used(root, "host", systems, client)
    workflow_host = _used(root, "workflow_host", systems, client)
    target = _used(root, "target", systems, client)
    for name, system in systems.items():
        if system not in (host, target, workflow_host):
            root.log.note(defined.place_of(name), "not used by the engine, left out")
    place = _one_place(root, [system for system in (host, target, workflow_host) if system])
    return place, _target(root, target or host or System(), host or System())


def _used(root: Section, key: str, systems: Mapping[str, System], client: Mapping[str, Any]) -> System | None:
    """The system that the engine names under a key, or describes there."""
    value = root.take(key)
    if value is None:
        return None
    if not isinstance(value, str):
        return _read(root.inner(key, ("config",)), client)
    if value not in systems:
        root.log.refuse(root.place_of(key), f"there is no system '{value}'", did_you_mean(value, systems))
    return systems.get(value)


def _one_place(root: Section, used: list[System]) -> dict[str, Any]:
    """Passes and metrics run on one system; a local one beside another adds nothing but its accelerator."""
    away = [system for system in used if system.type != "local"]
    for other in away[1:]:
        if (other.type, other.parameters) != (away[0].type, away[0].parameters):
            problem = "passes and metrics run on one system, but host and target are different ones"
            root.log.refuse(root.place_of("target"), problem, "name the same system in both")
    if not away:
        return {}
    return {"system": {"type": away[0].type, "parameters": dict(away[0].parameters)}}


def _target(root: Section, target: System, host: System) -> dict[str, Any] | None:
    providers = [str(name) for _, name in root.items("execution_providers") if name]
    if len(providers) > 1:
        hint = "write one file for each provider, or name the first alone"
        root.log.refuse(root.place_of("execution_providers"), "a workflow has one execution provider", hint)
    provider = target.provider or host.provider or next(iter(providers), None)
    device = target.device or host.device
    if device is None and provider is None:
        return None
    found = root.log.attempt(root.place_of("target"), lambda: resolve_target(device, provider))
    return {"device": found.device, "provider": found.provider} if found else None


def _read(section: Section, client: Mapping[str, Any]) -> System:
    """One system, with its parameters checked against the part that it becomes."""
    wanted = section.take("type", "LocalSystem", of=str)
    known = {name.lower(): entry for name, entry in names("systems").items()}
    entry = known.get(wanted.lower())
    if entry is None:
        hint = did_you_mean(wanted, names("systems"))
        section.log.refuse(section.place_of("type"), f"there is no system of type '{wanted}'", hint)
        return System()
    kind = entry if isinstance(entry, str) else entry["system"]
    device, provider = _accelerator(section, None if isinstance(entry, str) else entry["device"])
    parameters = _parameters(kind, section, client)
    section.close("system")
    section.log.attempt(section.place, lambda: Place(kind, parameters).make(section.place))
    return System(kind, parameters, device, provider)


def _parameters(kind: str, section: Section, client: Mapping[str, Any]) -> dict[str, Any]:
    found = _renamed(section, names("system_parameters")[kind])
    if kind == "docker":
        inner = section.inner("local_docker_config")
        found |= _renamed(inner, names("system_parameters")[kind])
        inner.close("system")
        found |= {"keep_image": True} if section.take("clean_image") is False else {}
    if kind == "azure_ml":
        image = section.inner("aml_docker_config")
        found |= _renamed(image, names("image_parameters"))
        image.close("system")
        found |= _environment(section)
        own = section.inner("azureml_client_config")
        table = names("client_parameters")
        found |= {
            ours: own.take(theirs, client.get(theirs))
            for theirs, ours in table.items()
            if theirs in own or theirs in client
        }
        own.close("azureml_client")
    return found


def _environment(section: Section) -> dict[str, str]:
    """A registered environment as NAME:VERSION or NAME@LABEL."""
    inner = section.inner("aml_environment_config")
    name, version, label = (inner.take(key) for key in ("name", "version", "label"))
    inner.close("system")
    if name is None:
        return {}
    return {"environment": f"{name}:{version}" if version else f"{name}@{label}" if label else str(name)}


def _renamed(section: Section, table: Mapping[str, str]) -> dict[str, Any]:
    return {ours: value for theirs, ours in table.items() if (value := section.take(theirs)) is not None}


def _accelerator(section: Section, device: str | None) -> tuple[str | None, str | None]:
    """Device and provider of the one accelerator, from its name or from a mapping."""
    found = section.items("accelerators")
    if len(found) > 1:
        hint = "write one file for each accelerator"
        section.log.refuse(section.place_of("accelerators"), "a workflow has one accelerator", hint)
    for place, item in found[:1]:
        if isinstance(item, str):
            return _device(section, place, item), None
        inner = Section(item, place, section.log)
        providers = inner.items("execution_providers")
        if len(providers) > 1:
            hint = "name one; it falls back to the CPU by itself"
            section.log.refuse(inner.place_of("execution_providers"), "a target has one execution provider", hint)
        wanted = inner.take("device", of=str)
        inner.close("accelerator")
        named = None if wanted is None else _device(section, inner.place_of("device"), wanted)
        return named, _provider(section, providers)
    return device, None


def _device(section: Section, place: str, name: str) -> str | None:
    devices = names("devices")
    if name.lower() not in devices:
        section.log.refuse(place, f"there is no device '{name}'", did_you_mean(name.lower(), devices))
    elif devices[name.lower()] != name.lower():
        section.log.note(place, f"{name} is taken as {devices[name.lower()] or 'the device of the provider'}")
    return devices.get(name.lower())


def _provider(section: Section, providers: list[tuple[str, Any]]) -> str | None:
    for place, name in providers[:1]:
        if isinstance(name, list):  # with the path of a library that holds it
            section.log.refuse(place, "providers from libraries are not loaded", "name one that ONNX Runtime brings")
            return None
        return str(name)
    return None
