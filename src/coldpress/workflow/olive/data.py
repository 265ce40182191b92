"""``data_configs``: a list or a mapping, of components or of one bag of parameters, as sources of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from coldpress import parts
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.parts import schema
from coldpress.workflow.olive.models import Source, resource
from coldpress.workflow.olive.reading import ANYWAY, Log, Origin, Section, Taken, in_its_words, value_of
from coldpress.workflow.olive.tables import data_parameters, data_table

#: today's name of a component -> its name in the mapping ``components`` of before
_COMPONENTS = {
    "load_dataset_config": "load_dataset",
    "pre_process_data_config": "pre_process_data",
    "post_process_data_config": "post_process_data",
    "dataloader_config": "dataloader",
}
#: the name of the data that old configurations put beside the model, here and in Olive
MODEL_DATA, _OLIVES_MODEL_DATA = "input_model_data", "__input_model_data_config__"
_HUB = "HuggingfaceContainer"


@dataclass(frozen=True)
class DataConfigs:
    """``sources``: what the workflow says of its data, by name.

    ``refused``: names of data that is there, but cannot be read. ``readers``: functions of scripts that read answers
    off the outputs for some data, as parameters of the metric ``accuracy``.
    """

    sources: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def spelled_out(self, parameters: Mapping[str, Any], fields: tuple[str, ...] = ("data",)) -> dict[str, Any]:
        """Parameters of a part with the data itself in place of its names, in ``fields``."""
        names = {key: value for key, value in parameters.items() if key in fields and isinstance(value, str)}
        return {**parameters, **{key: self.sources[name] for key, name in names.items() if name in self.sources}}

    def found(self, name: Any, place: str, log: Log) -> str | None:
        """The name that some data has here; None, and a problem unless it was told before, where there is none."""
        if name == _OLIVES_MODEL_DATA:
            if MODEL_DATA in self.sources or MODEL_DATA in self.refused:
                name = MODEL_DATA
            else:
                hint = "describe it in the model's hf_config.dataset, or in data_configs"
                log.refuse(place, f"there is no data beside the model for '{name}'", hint)
                return None
        if isinstance(name, str) and name in self.sources:
            return name
        if not isinstance(name, str) or name not in self.refused:
            hint = did_you_mean(str(name), self.sources) if self.sources else "describe it in data_configs"
            log.refuse(place, f"there is no data config {name!r}", hint)
        else:
            log.note(place, f"'{name}' cannot be read, so this has no effect")
        return None

    def of_function(self, section: Section) -> str | None:
        """The name of the data that a function of a script makes, where a metric or a pass names one."""
        if "dataloader_func" not in section or "user_script" not in section:
            return None
        function = section.take_out("dataloader_func", "", of=str)
        place = section.place_of("data_dir")
        given = {
            "script": section.take_out("user_script", of=str),
            "script_dir": section.take_out("script_dir", of=str),
            "dataloader_func": function,
            "data_dir": resource(section.take_out("data_dir"), place, section.log, {}),
            "batch_size": section.take_out("batch_size", 1, of=int),
            "func_kwargs": arguments_of(section, "dataloader_func"),
        }
        source = {"type": "user_script", "parameters": {key: value for key, value in given.items() if value}}
        names = chain([function], (f"{function}_{number}" for number in count(2)))
        name = next(one for one in names if self.sources.get(one, source) == source)
        self.sources[name] = source
        return name


def arguments_of(section: Section, name: str) -> dict[str, Any]:
    """What a function of a script is called with, in the places that Olive has had for it."""
    older = section.take("func_kwargs", {}, of=dict)
    given = older.get(name) if isinstance(older, Mapping) else None
    return {**(given or {}), **(section.take_out(f"{name}_kwargs", {}, of=dict) or {})}


Bag = dict[str, tuple[Any, str]]


def read_data(root: Section, source: Source, client: Mapping[str, Any]) -> DataConfigs:
    """All data of a configuration; that beside the model is called `MODEL_DATA`."""
    found = DataConfigs()
    for name, config, place in _named(root):
        _add(found, name, Section(config, place, root.log), source, client)
    if source.dataset is not None:
        beside = Section({"params_config": source.dataset[0]}, source.dataset[1], root.log)
        beside.move("params_config", source.dataset[1])
        _add(found, MODEL_DATA, beside, source, client, _HUB)
    return found


def _named(root: Section) -> list[tuple[str, Any, str]]:
    """Every data config with its name and place, from a list or a mapping."""
    if isinstance(root.take("data_configs", []), Mapping):
        inner = root.inner("data_configs")
        found = [(key, config, inner.place_of(key)) for key, config in inner.rest()]
    else:
        found = [("", item, place) for place, item in root.items("data_configs")]
    for key, config, place in found:
        if key and _name(config) == key:
            root.log.note(f"{place}.name", ANYWAY)
    return [(_name(config) or key, config, place) for key, config, place in found]


def _name(config: Any) -> str:
    return str(config.get("name") or "") if isinstance(config, Mapping) else ""


def _add(
    found: DataConfigs, name: str, section: Section, source: Source, client: Mapping[str, Any], container: str = ""
) -> None:
    section.take("name")
    if name in found.sources or name in found.refused:
        section.log.refuse(section.place, f"there are two data configs '{name}'", "give each a name of its own")
        section.leave("not read, as another has its name")
        return
    script = _Script.of(section, container)
    if script is not None and script.makes_batches:
        found.sources[name] = {"type": "user_script", "parameters": script.parameters(section)}
        found.readers.update({name: script.reader} if script.reader else {})
        return
    bag, components = _bag(section)
    if script is not None and script.reader:
        found.readers[name] = script.reader
        components.pop("post_process_data_config", None)
    kind = _kind(section, container or section.take("type", "DataContainer", of=str), bag, components, source)
    if kind is None:
        found.refused.add(name)
        section.log.unread(section.place, section.raw)
        for _ in section.untaken():
            pass
        return
    if "data_files" in bag:
        value, place = bag["data_files"]
        bag["data_files"] = _fetched(value, place, section, client), place
    if "input_shapes" in bag:
        _shapes(bag, section)
    parameters, origins = _parameters(kind, bag, section)
    found.sources[name] = {"type": kind, "parameters": parameters}
    try:
        schema.build(parts.find("data", kind), parameters, section.place)
    except ColdpressError as error:
        section.log.problems.append(in_its_words(error, section.place, origins))


#: slot of a component -> the table of Olive's own
_OWN = {
    "load_dataset_config": "loaders",
    "pre_process_data_config": "components",
    "post_process_data_config": "post_processors",
    "dataloader_config": "dataloaders",
}


@dataclass(frozen=True)
class _Script:
    """A script of the user's with components of a data config; ``components``: their types and parameters, by slot."""

    script: str
    folder: str | None
    container: str
    components: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, section: Section, container: str) -> _Script | None:
        """The script that a section names; None where it names none, or none of its components is its own."""
        raw: Any = section.raw if isinstance(section.raw, Mapping) else {}
        script, folder = raw.get("user_script"), raw.get("script_dir")
        if not isinstance(script, str):
            return None
        old = raw.get("components") if isinstance(raw.get("components"), Mapping) else {}
        found = {slot: {**_flat(old.get(before)), **_flat(raw.get(slot))} for slot, before in _COMPONENTS.items()}
        made = cls(script, folder, str(container or raw.get("type") or ""), found)
        return made if any(map(made._is_own, found)) else None

    def _is_own(self, slot: str) -> bool:
        name = str(self.components[slot].get("type") or "").lower()
        return bool(name) and name not in {one.lower() for one in data_table("kinds")[_OWN[slot]]}

    @property
    def makes_batches(self) -> bool:
        return any(self._is_own(slot) for slot in _COMPONENTS if slot != "post_process_data_config")

    @property
    def reader(self) -> dict[str, Any]:
        """How answers are read off outputs, where a function of the script does it."""
        if not self._is_own("post_process_data_config"):
            return {}
        given = dict(self.components["post_process_data_config"])
        called = {"script": self.script, "function": given.pop("type")}
        return {**called, **({"arguments": given} if given else {})}

    def parameters(self, section: Section) -> dict[str, Any]:
        """The parameters of data of the kind ``user_script``; the section is read with that."""
        for key in ("user_script", "script_dir", "type", "components", "params_config", *_COMPONENTS):
            section.take(key)
        section.close("data")
        loading = dict(self.components["load_dataset_config"])
        if not loading.get("type") and self.container.lower() == _HUB.lower():
            loading["type"] = "huggingface_dataset"
        found = {
            "script": self.script,
            "script_dir": self.folder,
            "load_dataset": loading,
            "pre_process_data": dict(self.components["pre_process_data_config"]),
            "dataloader": dict(self.components["dataloader_config"]),
        }
        return {key: value for key, value in found.items() if value}


def _flat(component: Any) -> dict[str, Any]:
    """The type of a component and its parameters, at whatever level they stand."""
    if not isinstance(component, Mapping):
        return {}
    params = component.get("params")
    inner = params if isinstance(params, Mapping) else {}
    return {key: value for key, value in {**component, **inner}.items() if key not in ("params", "name")}


def _shapes(bag: Bag, section: Section) -> None:
    """Shapes in a list, in the order of the names in another, as a mapping."""
    shapes, place = bag.pop("input_shapes")
    names = bag.get("input_names", ([], place))[0]
    if not isinstance(shapes, list) or not isinstance(names, list):
        section.log.refuse(place, "names and shapes of inputs are two lists")
        return
    if len(names) != len(shapes):
        problem = f"{len(shapes)} shapes for {len(names)} names"
        section.log.refuse(place, problem, "name each input in input_names")
    bag["shapes"] = dict(zip(map(str, names), shapes, strict=False)), place


def _fetched(value: Any, place: str, section: Section, client: Mapping[str, Any]) -> Any:
    """Paths of files, among them URIs of Azure ML."""
    if isinstance(value, Mapping) and "type" in value:
        return resource(value, place, section.log, client)
    if isinstance(value, list):
        return [_fetched(one, f"{place}[{index}]", section, client) for index, one in enumerate(value)]
    return value


def _bag(section: Section) -> tuple[Bag, dict[str, tuple[str, str]]]:
    """The parameters of all components, and by component the name of what does its work; each with its place.

    The bag of parameters that older versions had goes over what a component says, ``component_kwargs`` in it over both.
    """
    bag: Bag = {}
    kinds: dict[str, tuple[str, str]] = {}
    old = section.inner("components")
    for today, before in _COMPONENTS.items():
        for component in (section.inner(today, ("params",)), old.inner(before, ("params",))):
            if component.take("name") is not None:
                section.log.note(component.place_of("name"), "no effect here: components have no names")
            if kind := component.take("type", of=str):
                kinds[today] = kind, component.place_of("type")
            _put(bag, component, section.log)
    old.close("resource")
    shared = section.inner("params_config")
    arguments = shared.inner("component_kwargs")
    _put(bag, shared, section.log)
    for before in _COMPONENTS.values():
        _put(bag, arguments.inner(before), section.log)
    arguments.close("resource")
    return bag, kinds


def _put(bag: Bag, section: Section, log: Log) -> None:
    """Put what nobody took of a section into the bag, over what is there."""
    for key, value in section.untaken():
        place = section.place_of(key)
        if key in bag:
            log.note(bag[key][1], f"no effect: {place} says it, too, and counts", bag[key][0])
        bag[key] = value, place


def _kind(
    section: Section, container: str, bag: Bag, components: Mapping[str, tuple[str, str]], source: Source
) -> str | None:
    """The kind of data, told by the components, the task or the container; None, and a problem, when there is none."""
    task, _ = bag.get("task", (source.task, ""))
    is_hub = container.lower() == _HUB.lower()
    told = [
        ("components", *components.get("pre_process_data_config", ("", ""))),
        ("loaders", *components.get("load_dataset_config", ("", ""))),
        ("tasks", str(task or "") if is_hub else "", ""),
        ("containers", container, section.place_of("type") if "type" in section else ""),
        ("post_processors", *components.get("post_process_data_config", ("", ""))),
        ("dataloaders", *components.get("dataloader_config", ("", ""))),
    ]
    kind, told_by, is_wrong = None, "", False
    for table, name, place in told:
        known = {one.lower(): entry for one, entry in data_table("kinds")[table].items()}
        if not name or (table == "tasks" and name.lower() not in known):
            continue
        entry = known.get(name.lower(), "")
        if entry == "":
            _unknown(section, name, data_table("kinds")[table])
        elif isinstance(entry, Mapping):
            section.log.refuse(section.place, f"data of the kind {name} is not read", entry["instead"])
        elif isinstance(entry, str) and kind is None:
            kind, told_by = entry, table
        elif place and not (table == "containers" and told_by == "tasks"):  # the container lets the task tell
            section.log.note(place, _NO_MATTER.get(table, ANYWAY if kind is None else f"no effect: it is {kind} data"))
        is_wrong |= entry == "" or isinstance(entry, Mapping)
    if kind is None and not is_wrong:
        hint = f"give it the type {_HUB}"
        section.log.refuse(section.place, "nothing says what kind of data this is", hint)
    return None if is_wrong else kind


_NO_MATTER = {
    "post_processors": "no effect here: what outputs mean follows from the kind of data",
    "dataloaders": "no effect here: batches are made alike for all data",
}


def _unknown(section: Section, name: str, known: Mapping[str, Any]) -> None:
    """Refuse a component that nobody knows, or that a script of the user's was to register."""
    scripts = {key: value for key in ("user_script", "script_dir") if (value := section.take(key)) is not None}
    if scripts:
        hint = "write a function that gives batches, and name it in a workflow file as data of the kind script"
        where = ", ".join(f"{key}: {value}" for key, value in scripts.items())
        problem = f"'{name}' is registered with Olive by a user script, which is not run ({where})"
        section.log.refuse(section.place, problem, hint)
    else:
        section.log.refuse(section.place, f"there is no '{name}'", did_you_mean(name, known))


def _parameters(kind: str, bag: Bag, section: Section) -> tuple[dict[str, Any], dict[str, Origin]]:
    known = data_parameters()[kind]
    taken = Taken(section.log)
    for key, (value, place) in bag.items():
        if key not in known:
            section.log.refuse(place, f"there is no '{key}' here", did_you_mean(key, known))
        elif value is None:
            section.log.note(place, ANYWAY)
        elif known[key].has_no_counterpart:
            section.log.without_counterpart(known[key], value, place)
        else:
            taken.put(value_of(known[key], value, place, section.log), Origin(place, key, value, known[key]))
    section.close("data")
    found, origins = taken.parameters, taken.origins
    if "text_template" in found and found.pop("text_cols", None):
        section.log.note(origins["text_cols"].place, "no effect here: the text_template names the columns")
    return found, origins
