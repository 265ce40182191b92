"""``data_configs``: a list or a mapping, of components or of one bag of parameters, as sources of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldpress import parts, schema
from coldpress.errors import did_you_mean
from coldpress.olive_config.models import Source, resource
from coldpress.olive_config.reading import Section, value_of
from coldpress.olive_config.tables import data_parameters, data_table

#: today's name of a component -> its name in the mapping ``components`` of before
_COMPONENTS = {
    "load_dataset_config": "load_dataset",
    "pre_process_data_config": "pre_process_data",
    "post_process_data_config": "post_process_data",
    "dataloader_config": "dataloader",
}
#: the name of the data that old configurations put beside the model
MODEL_DATA = "input_model_data"


@dataclass(frozen=True)
class Calibration:
    """Data as parameters of a pass that calibrates, and what of it such a pass does not take."""

    parameters: Mapping[str, Any]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataConfigs:
    """``sources``: what the workflow says of its data, by name. ``calibration``: the same for passes that calibrate."""

    sources: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)

    def spelled_out(self, parameters: Mapping[str, Any], fields: tuple[str, ...] = ("data",)) -> dict[str, Any]:
        """Parameters of a part with the data itself in place of its names, in ``fields``."""
        names = {key: value for key, value in parameters.items() if key in fields and isinstance(value, str)}
        return {**parameters, **{key: self.sources[name] for key, name in names.items() if name in self.sources}}


def read_data(root: Section, source: Source, client: Mapping[str, Any]) -> DataConfigs:
    """All data of a configuration; that beside the model is called `MODEL_DATA`."""
    found = DataConfigs()
    for name, config, place in _named(root):
        _add(found, name, Section(config, place, root.log), source, client)
    if source.dataset:
        beside = Section(
            {"type": "HuggingfaceContainer", "params_config": dict(source.dataset)},
            "input_model.hf_config.dataset",
            root.log,
        )
        _add(found, MODEL_DATA, beside, source, client)
    return found


def _named(root: Section) -> list[tuple[str, Any, str]]:
    """Every data config with its name and place, from a list or a mapping."""
    if isinstance(root.take("data_configs"), Mapping):
        inner = root.inner("data_configs")
        found = [(key, config, inner.place_of(key)) for key, config in inner.rest()]
    else:
        found = [("", item, place) for place, item in root.items("data_configs")]
    return [(_name(config) or key, config, place) for key, config, place in found]


def _name(config: Any) -> str:
    return str(config.get("name") or "") if isinstance(config, Mapping) else ""


def _add(found: DataConfigs, name: str, section: Section, source: Source, client: Mapping[str, Any]) -> None:
    section.take("name")
    if name in found.sources:
        section.log.refuse(section.place, f"there are two data configs '{name}'", "give each a name of its own")
        return
    bag, components = _bag(section)
    kind = _kind(section, bag, components, source)
    if kind is None:
        return
    if "data_files" in bag:
        value, place = bag["data_files"]
        bag["data_files"] = _fetched(value, place, section, client), place
    if "input_shapes" in bag:
        _shapes(bag, section)
    parameters = _parameters(kind, bag, section)
    found.sources[name] = {"type": kind, "parameters": parameters}
    found.calibration[name] = _calibration(kind, parameters)
    _check(kind, parameters, section)


def _shapes(bag: dict[str, tuple[Any, str]], section: Section) -> None:
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


def _bag(section: Section) -> tuple[dict[str, tuple[Any, str]], dict[str, str]]:
    """The parameters of all components with their places, and which component does what.

    The bag of parameters that older versions had goes over what a component says, ``component_kwargs`` in it over both.
    """
    bag: dict[str, tuple[Any, str]] = {}
    kinds: dict[str, str] = {}
    old = section.inner("components")
    for today, before in _COMPONENTS.items():
        for component in (section.inner(today, ("params",)), old.inner(before, ("params",))):
            component.take("name")
            if kind := component.take("type", of=str):
                kinds[today] = kind
            bag |= _placed(component)
    old.close("resource")
    shared = section.inner("params_config")
    arguments = shared.inner("component_kwargs")
    bag |= _placed(shared)
    for before in _COMPONENTS.values():
        bag |= _placed(arguments.inner(before))
    arguments.close("resource")
    return bag, kinds


def _placed(section: Section) -> dict[str, tuple[Any, str]]:
    """What nobody took of a section, with its places."""
    return {key: (value, section.place_of(key)) for key, value in section.rest()}


def _kind(section: Section, bag: Mapping[str, Any], components: Mapping[str, str], source: Source) -> str | None:
    """The kind of data, told by the components, the task or the container; None, and a problem, when there is none."""
    container = section.take("type", "DataContainer", of=str)
    task = str(bag["task"][0] if "task" in bag else source.task)
    tables = data_table("kinds")
    told = [
        ("components", components.get("pre_process_data_config")),
        ("loaders", components.get("load_dataset_config")),
        ("tasks", task if container.lower() == "huggingfacecontainer" else None),
        ("containers", container),
    ]
    for table, name in told:
        known = {one.lower(): entry for one, entry in tables[table].items()}
        if not name or (table == "tasks" and name.lower() not in known):
            continue
        if name.lower() not in known:
            _unknown(section, name, tables[table])
            return None
        entry = known[name.lower()]
        if isinstance(entry, str):
            return entry
        if entry is not None:
            section.log.refuse(section.place, f"data of the kind {name} is not read", entry["instead"])
            return None
    section.log.refuse(section.place, "nothing says what kind of data this is", "give it the type HuggingfaceContainer")
    return None


def _unknown(section: Section, name: str, known: Mapping[str, Any]) -> None:
    """Refuse a component that nobody knows, or that a script of the user's was to register."""
    scripts = [key for key in ("user_script", "script_dir") if section.take(key) is not None]
    if scripts:
        hint = "write a function that gives batches, and name it in a workflow file as data of the kind script"
        section.log.refuse(section.place, f"'{name}' is registered with Olive by a user script, which is not run", hint)
    else:
        section.log.refuse(section.place, f"there is no '{name}'", did_you_mean(name, known))


def _parameters(kind: str, bag: Mapping[str, tuple[Any, str]], section: Section) -> dict[str, Any]:
    known = data_parameters()[kind]
    found: dict[str, Any] = {}
    for key, (value, place) in bag.items():
        if key not in known:
            section.log.refuse(place, f"there is no '{key}' here", did_you_mean(key, known))
        elif known[key].has_no_counterpart:
            section.log.without_counterpart(known[key], value, place)
        else:
            found |= value_of(known[key], value, place, section.log)
    section.close("data")
    if "text_template" in found and found.pop("text_cols", None):
        section.log.note(bag["text_cols"][1], "no effect here: the text_template names the columns")
    return found


def _calibration(kind: str, parameters: Mapping[str, Any]) -> Calibration:
    """The same data as a pass that calibrates takes it, with a template for columns."""
    if kind != "text_corpus":
        return Calibration({}, (f"the kind {kind}",))
    known, harmless = data_table("calibration"), data_table("calibration_needs_not")
    found = {ours: parameters[theirs] for theirs, ours in known.items() if theirs in parameters}
    if columns := parameters.get("text_cols"):
        found["text_template"] = " ".join(f"{{{column}}}" for column in columns)
    left = {key: value for key, value in parameters.items() if key not in known and key != "text_cols"}
    missing = (key for key, value in left.items() if key not in harmless or value not in (harmless[key] or (value,)))
    return Calibration(found, tuple(missing))


def _check(kind: str, parameters: dict[str, Any], section: Section) -> None:
    """Whether there is such data, and it takes these parameters."""
    section.log.attempt(section.place, lambda: schema.build(parts.find("data", kind), parameters, section.place))
