"""``systems``, ``engine.host`` and ``engine.target``: one system where the work is done, and one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coldpress.errors import did_you_mean
from coldpress.target import PROVIDERS, resolve_target
from coldpress.workflow import Place
from coldpress.workflow.olive.reading import ANYWAY, Section
from coldpress.workflow.olive.tables import names

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Accelerator:
    """The accelerator that a system names: a device, the provider that is meant, and where each stands."""

    device: str | None = None
    provider: str | None = None
    device_place: str = ""
    provider_place: str = ""

    @property
    def is_named(self) -> bool:
        return bool(self.device or self.provider)


@dataclass(frozen=True)
class System:
    """A system of a configuration: what it is here, the accelerator that it names, and what stands where."""

    type: str = "local"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    accelerator: Accelerator = Accelerator()
    given: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


def client_of(root: Section) -> dict[str, Any]:
    """The workspace of Azure ML that a configuration names for all that lies or runs there, under Olive's names."""
    client = root.inner("azureml_client")
    found = {theirs: client.take(theirs) for theirs in names("client_parameters") if theirs in client}
    client.close("azureml_client")
    return found


def read_systems(
    root: Section, client: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
    """What the workflow says of its system, and of its target, None when nothing names an accelerator; and the system
    where metrics are measured, None when that is the same."""
    defined = root.inner("systems")
    given = dict(defined.rest())
    systems = {
        name: _read(Section(one, defined.place_of(name), root.log, ("config",)), client) for name, one in given.items()
    }
    used = {key: _used(root, key, systems, client) for key in reversed(_BY_RANK)}
    for name, system in systems.items():
        if not any(system is one for one in used.values()):
            root.log.left_out(defined.place_of(name), "not used by the engine, left out", given[name])
    for key, named in used.items():
        others = [other for name, other in used.items() if other and name != key]
        if named and _told(others) == _told([one for one in used.values() if one]):
            root.log.note(root.place_of(key), "no effect: place and accelerator of the work are told without it")
    host, target = used["host"], used["target"]
    measured = None
    if host and target and "local" not in (host.type, target.type) and _same(host) != _same(target):
        measured, used["target"] = {"type": target.type, "parameters": dict(target.parameters)}, None
    place = _one_place(root, [system for system in used.values() if system])
    used["target"] = target
    return place, _target(root, [named.accelerator for key in _BY_RANK if (named := used[key])]), measured


def _same(system: System) -> tuple[str, Mapping[str, Any]]:
    """What two systems have in common that are the same place."""
    return system.type, system.parameters


#: whose accelerator is the target, first the one that counts most
_BY_RANK = ("target", "host", "workflow_host")


def _told(systems: list[System]) -> tuple[Any, Any]:
    """What used systems, of which the target is the last, say: where work is done, and the accelerator that counts."""
    away = next(((one.type, one.parameters) for one in systems if one.type != "local"), None)
    named = [one.accelerator for one in systems if one.accelerator.is_named]
    return away, (named[-1].device, named[-1].provider) if named else None


def _used(root: Section, key: str, systems: Mapping[str, System], client: Mapping[str, Any]) -> System | None:
    """The system that the engine names under a key, or describes there."""
    value = root.take(key)
    if value is None:
        return None
    if not isinstance(value, str):
        return _read(root.inner(key, ("config",)), client)
    if value not in systems:
        hint = did_you_mean(value, systems) if systems else "describe it in systems"
        root.log.refuse(root.place_of(key), f"there is no system '{value}'", hint)
    return systems.get(value)


def _one_place(root: Section, used: list[System]) -> dict[str, Any]:
    """Passes run on one system; a local one beside another adds nothing but its accelerator."""
    away = [system for system in used if system.type != "local"]
    for other in away[1:]:
        if _same(other) != _same(away[0]):
            problem = "all passes run on one system, but workflow_host is another one than host or target"
            root.log.refuse(root.place_of("workflow_host"), problem, "name the same system in both")
            root.log.unread(other.place, other.given)
    if not away:
        return {}
    return {"system": {"type": away[0].type, "parameters": dict(away[0].parameters)}}


def _target(root: Section, accelerators: list[Accelerator]) -> dict[str, Any] | None:
    """The target that the first accelerator stands for; a provider of the engine is that of one that names none."""
    found = next((one for one in accelerators if one.is_named), Accelerator())
    for other in accelerators:
        for place in (other.device_place, other.provider_place) if other is not found else ():
            if place:
                root.log.note(place, "no effect: the target is that of another system")
    providers = _providers(root, "execution_providers", found.device)
    if found.provider is None and providers:
        found = replace(found, provider=providers[0], provider_place=providers[1])
    elif providers:
        root.log.note(providers[1], "no effect: the accelerator names its provider")
    if found.device is None and found.provider is None:
        return None
    device = None if found.provider == _CPU else found.device
    place = found.provider_place or found.device_place or root.place_of("target")
    target = root.log.attempt(place, lambda: resolve_target(device, found.provider))
    if target is None:
        return None
    if found.device and found.provider:
        if found.device != target.device:
            root.log.note(found.device_place, f"{found.provider} runs on {target.device}, which is taken")
        elif resolve_target(None, found.provider) == target:
            root.log.note(found.device_place, ANYWAY)
        if resolve_target(found.device, None) == target:
            root.log.note(found.provider_place, ANYWAY)
    return {"device": target.device, "provider": target.provider}


def _providers(section: Section, key: str, device: str | None) -> tuple[str, str] | None:
    """The provider that is meant by a list of some, and its place: the first that has the device; None without any."""
    places = {str(name): place for place, name in section.items(key) if isinstance(name, str)}
    for place, name in section.items(key):
        if isinstance(name, list):  # with the path of a library that holds it
            section.log.refuse(place, "providers from libraries are not loaded", "name one that ONNX Runtime brings")
    fitting = [name for name in places if device in PROVIDERS.get(name, ((), ""))[0]]
    first = next(iter([*fitting, *(name for name in places if name != _CPU), *places]), None)
    if first is None:
        return None
    for name, place in places.items():
        if name == _CPU and first != _CPU:
            section.log.note(place, f"no effect here: {name} does what {first} leaves to it in any case")
        elif name != first:
            section.log.note(place, f"the target is {first}; run the file once more with {name} in its place")
    return first, places[first]


def _read(section: Section, client: Mapping[str, Any]) -> System:
    """One system, with its parameters checked against the part that it becomes."""
    wanted = section.take("type", "LocalSystem", of=str)
    known = {name.lower(): entry for name, entry in names("systems").items()}
    entry = known.get(wanted.lower())
    if entry is None:
        hint = did_you_mean(wanted, names("systems"))
        section.log.refuse(section.place_of("type"), f"there is no system of type '{wanted}'", hint)
        section.leave("not read")
        return System()
    kind = entry if isinstance(entry, str) else entry["system"]
    if kind == "local" and isinstance(entry, str):
        section.anyway("type")
    accelerator = _accelerator(section, None if isinstance(entry, str) else entry["device"])
    parameters = _parameters(kind, section, client)
    section.close("system")
    section.log.attempt(section.place, lambda: Place(kind, parameters).make(section.place))
    return System(kind, parameters, accelerator, section.raw, section.place)


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


def _accelerator(section: Section, device: str | None) -> Accelerator:
    """The one accelerator, from its name or from a mapping."""
    found = section.items("accelerators")
    if len(found) > 1:
        hint = "write one file for each accelerator"
        section.log.refuse(section.place_of("accelerators"), "a workflow has one accelerator", hint)
        for place, item in found[1:]:
            section.log.note(place, "not read", item)
    for place, item in found[:1]:
        if isinstance(item, str):
            return Accelerator(_device(section, place, item), None, place)
        inner = Section(item, place, section.log)
        wanted = inner.take("device", of=str)
        named = None if wanted is None else _device(section, inner.place_of("device"), wanted)
        provider, where = _providers(inner, "execution_providers", named) or (None, "")
        inner.close("accelerator")
        return Accelerator(named, provider, inner.place_of("device") if named else "", where)
    return Accelerator(device, None, section.place_of("type") if device else "")


def _device(section: Section, place: str, name: str) -> str | None:
    devices = names("devices")
    if name.lower() not in devices:
        section.log.refuse(place, f"there is no device '{name}'", did_you_mean(name.lower(), devices))
    elif devices[name.lower()] != name.lower():
        section.log.note(place, f"{name} is taken as {devices[name.lower()] or 'the device of the provider'}")
    found: str | None = devices.get(name.lower())
    return found
