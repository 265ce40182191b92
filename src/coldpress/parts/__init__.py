"""The parts one can add: passes, surgeries, metrics, kinds of data, systems, samplers, rules, tasks; found by their
file's name.

A built-in part is one file in the folder of its kind (``passes/press.py`` holds the pass ``press``). A part
from another distribution registers an entry point in the group ``coldpress.passes`` (or ``.metrics``, ...)
and is found the same way. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, get_type_hints

from coldpress.errors import ColdpressError, did_you_mean
from coldpress.models.model import Model
from coldpress.models.planned import Planned
from coldpress.parts import schema
from coldpress.parts.needs import check_needs as check_needs
from coldpress.target import Target

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

#: kinds whose folder is not one of the root
_FOLDERS = {"surgeries": "passes/surgeries"}
KINDS = ("passes", "surgeries", "metrics", "data", "systems", "samplers", "rules", "tasks")


@contextmanager
def _no_folder(kind: str, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Without a store nothing outlives the run."""
    with tempfile.TemporaryDirectory(prefix=f"coldpress-{kind}-") as folder:
        yield Path(folder)


def option(text: str, default: Any = MISSING, choices: tuple[Any, ...] = ()) -> Any:
    """A field with its help text and, where only some values are allowed, these.

    A default that is a type, such as ``dict``, makes a new object each time; without a default the field is required.
    """
    metadata = {"help": text, "choices": choices}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Context:
    """What a part gets besides the model.

    ``scratch``: an empty folder that the part owns; a pass writes its model there. ``target``: where the model
    shall run. ``source``: the model that a metric compares with, if any. ``progress(what, done, total)``
    may be called as often as one likes. ``seed`` feeds every random choice. ``kept(kind, facts)`` is a folder that
    outlives the run, the same for the same facts: a part puts there what a killed run shall go on from, or
    what other runs can use, and each file in it complete or not at all.
    """

    scratch: Path
    target: Target = Target()
    source: Model | None = None
    progress: Callable[[str, float, float], None] = lambda what, done, total: None
    seed: int = 0
    kept: Callable[[str, Mapping[str, Any]], AbstractContextManager[Path]] = _no_folder


@dataclass(frozen=True)
class Closeness:
    """How far the outputs of a graph may be from those of the graph before a pass: ``relative``, the norm of their
    difference in units of the norm of what was there before, and ``why`` that much.
    """

    relative: float
    why: str


#: of a pass that says the same in other words
SAME = Closeness(1e-4, "only the order of sums may change")


class Pass:
    """One transformation of a model. Subclasses are frozen dataclasses; their fields are the parameters.

    Each field carries its help text in ``field(metadata={"help": ...})`` and, where only some values are allowed,
    ``{"choices": (...)}``. The file's docstring is the pass's documentation. ``reads`` names the fields that are paths
    of files: what is in these counts when a result is looked up. ``is_timed``: whether the result depends on how fast
    things run; then the target's number of threads counts, too. ``fits_machine``: whether the result is made for the
    processor of the machine that it is made on. ``is_verified``: whether the result of the pass alone
    is compared with what it was made of.
    """

    accepts: ClassVar[tuple[str, ...]] = ()
    is_verified: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    produces: ClassVar[str] = "onnx"
    needs: ClassVar[tuple[str, ...]] = ()
    is_timed: ClassVar[bool] = False
    fits_machine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    @property
    def closeness(self) -> Closeness | None:
        """How near an ONNX model must stay to the ONNX model before; None where the pass means to change what it
        computes."""
        return None

    @property
    def renamed(self) -> Mapping[str, str]:
        """Inputs and outputs of an ONNX model that get another name: the name before -> the name afterwards."""
        return {}

    def check(self, model: Model | Planned, target: Target) -> None:
        """Raise ColdpressError when this pass cannot do its work; early and cheap.

        Before any work ``model`` is the source for the first pass, and what the pass before has foretold for any other;
        that one is checked again when its model is there.
        """

    @classmethod
    def started_early(cls) -> AbstractContextManager[None]:
        """Start processes that `run` will need, which load their libraries while the request is checked."""
        return nullcontext()

    def foretold(self, model: Model | Planned) -> Model | Planned:
        """What this pass is going to make of ``model``, for the checks of later passes; ``model`` itself where it stays
        as it is."""
        return Planned(self.produces, model.provenance)

    def run(self, model: Model, ctx: Context) -> Model:
        """Write the transformed model below ``ctx.scratch`` and return it (its key is set by the store).

        Where there is nothing to do, the model itself comes back, perhaps with further remarks; that is not stored.
        """
        raise NotImplementedError


class Renaming(Protocol):
    """What says which inputs and outputs it renames: a pass, or a surgery."""

    @property
    def renamed(self) -> Mapping[str, str]: ...


def renamed_in_a_row(changes: Iterable[Renaming]) -> dict[str, str]:
    """What inputs and outputs are called after several changes: the name before the first -> after the last."""
    found: dict[str, str] = {}
    for change in changes:
        own = change.renamed
        begun = {old: new for old, new in own.items() if old not in found.values()}
        found = {old: own.get(new, new) for old, new in found.items()} | begun
    return found


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples as a model takes them at once.

    ``inputs``: name of the model's input -> array ``[samples, ...]``. ``labels``: what is right, int64 ``[samples]`` or
    ``[samples, tokens]`` with -100 where nothing counts, or one text for each sample; None where nobody said.
    ``truncated``: how many of the samples were longer, and lost their end. ``origin``: where they are from.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | list[str] | None = None
    truncated: int = 0
    origin: str = ""

    @property
    def size(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))


class Data:
    """A kind of data: where batches come from. Subclasses are frozen dataclasses, as passes are.

    ``accepts``: the formats of the models that it can make batches for. ``reads``: as of a pass; a folder counts with
    all that is in it. ``runs_script``: whether code of the user's makes them; then what takes them is done in a process
    of its own.
    """

    accepts: ClassVar[tuple[str, ...]] = ("hf", "onnx")
    reads: ClassVar[tuple[str, ...]] = ()
    runs_script: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1

    def check(self, model: Model | Planned) -> None:
        """Raise ColdpressError when the data is not there or not what it should be; early and cheap.

        ``model`` may be the source of the one that gets the batches, in any format.
        """

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        """The batches for a model, one at a time, the same ones each time."""
        raise NotImplementedError


@dataclass(frozen=True)
class DataSource:
    """Where a pass or a metric gets its batches: a kind of data and its parameters."""

    type: str = option("kind of data")
    parameters: dict[str, Any] = option("parameters of that kind; what is left out has its default", dict)  # noqa: RUF009

    def make(self, where: str = "data") -> Data:
        """The data itself; raises ColdpressError for an unknown kind or parameter."""
        made: Data = schema.build(find("data", self.type), self.parameters, f"{where}.parameters")
        return made

    def batches(self, model: Model, ctx: Context) -> Iterator[Batch]:
        """The batches for a model; raises ColdpressError when the data cannot give any."""
        made = self.make()
        check_needs(type(made))
        if model.format not in made.accepts:
            raise ColdpressError(f"data of the kind {self.type} is not for {model.format} models")
        made.check(model)
        is_empty = True
        for batch in made.batches(model, ctx):
            is_empty = False
            yield batch
        if is_empty:
            raise ColdpressError(
                f"data of the kind {self.type} gave no batch",
                hint="with drop_last, batch_size may be above the number of samples",
            )


@dataclass(frozen=True)
class Value:
    """How to read one measured number: which direction is better, and its unit."""

    better: str  # "lower", "higher" or "neither"
    unit: str = ""


class Metric:
    """One measurement of a model: named numbers, each described in ``values``.

    Where the parameters decide which numbers there are, an instance has ``values`` of its own. ``reads``: as of a pass.
    ``runs_model``: whether the model is loaded, which is then done in a fresh process, as an app would. ``is_timed``:
    whether the numbers are times, so that models are compared by it in turns, never from the store. ``quick``:
    parameters with which a search takes a cheap first look; empty where there is none.
    """

    values: ClassVar[Mapping[str, Value]] = {}
    accepts: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    runs_model: ClassVar[bool] = True
    is_timed: ClassVar[bool] = False
    quick: ClassVar[Mapping[str, Any]] = {}
    version: ClassVar[int] = 1

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        """The numbers promised in ``values``; further JSON values may stand beside them as details."""
        raise NotImplementedError


class Sampler:
    """How a search picks its points. Subclasses are frozen dataclasses; their fields are the parameters."""

    needs: ClassVar[tuple[str, ...]] = ("optuna",)
    version: ClassVar[int] = 1

    def make(self, seed: int) -> Any:
        """An `optuna.samplers.BaseSampler`, or None for one point of the grid after the other.

        With the same seed, asked and told the same, it must propose the same: so a search that was killed goes on as if
        nothing had happened.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Finding:
    """What a rule has found: ``problem``, in words; the ``fix``; the ``place``, a node or a tensor, empty for the whole
    graph.

    ``severity``: an ``error`` does not run or falls off a performance cliff, a ``warning`` costs time or bytes.
    """

    problem: str
    fix: str
    place: str = ""
    severity: Literal["error", "warning"] = "error"


def place_of(found: Sequence[ir.Node | str]) -> str:
    """The place of a finding that stands for several: the first, by its name or else by what it gives, and how many
    more."""
    first = found[0]
    name = first if isinstance(first, str) else first.name or first.outputs[0].name
    return f"{name} and {len(found) - 1} more" if len(found) > 1 else str(name)


class Rule:
    """Something known of graphs: looks at one for a target.

    Subclasses are frozen dataclasses; their docstring is what `lint` says of them.

    What a pass can know before there is a graph it asks of functions in the file of the rule, so that both say the
    same.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def look(self, graph: ir.Model, target: Target, options: Mapping[str, Any]) -> Iterator[Finding]:
        """All findings in a graph, its weights where they are; ``options`` are the session options that lie beside
        it."""
        raise NotImplementedError

    def mend(self, graph: ir.Model, target: Target) -> int:
        """Put right in place what can be without changing what the graph computes; returns in how many places."""
        return 0


def refuse(findings: Iterable[Finding]) -> None:
    """Raise ColdpressError for the first finding that is an error."""
    for finding in findings:
        if finding.severity == "error":
            raise ColdpressError(finding.problem, hint=finding.fix)


@cache
def names(kind: str) -> dict[str, str]:
    """All parts of a kind: name -> module that holds it, a file or one in a folder of its name.

    Reads names of files only.
    """
    place = _FOLDERS.get(kind, kind)
    folder, package = Path(__file__).parents[1] / place, f"coldpress.{place.replace('/', '.')}"
    built_in = {file.stem: f"{package}.{file.stem}" for file in folder.glob("[a-z]*.py")}
    built_in |= {
        file.stem: f"{package}.{file.stem}.{file.stem}"
        for file in folder.glob("*/[a-z]*.py")
        if file.stem == file.parent.name
    }
    added = {entry.name: entry.module for entry in entry_points(group=f"coldpress.{kind}")}
    return dict(sorted({**added, **built_in}.items()))


def find(kind: str, name: str) -> type[Any]:
    """The class of a part. The class is the one in its module whose name is the file's in CamelCase."""
    known = names(kind)
    file = name if name in known else file_name(name)
    if file not in known:
        others = {"passes": "pass", "surgeries": "surgery", "data": "kind of data"}
        singular = others.get(kind, kind.removesuffix("s"))
        raise ColdpressError(f"unknown {singular} '{name}'", hint=did_you_mean(file_name(name), known))
    module = importlib.import_module(known[file])
    return getattr(module, "".join(word.capitalize() for word in file.split("_")))


def data_fields(part: type[Any]) -> tuple[str, ...]:
    """The fields of a pass or metric that say where its batches come from: those of the type DataSource."""
    hints = get_type_hints(part)
    return tuple(one.name for one in fields(part) if DataSource in (hints[one.name], *get_args(hints[one.name])))


def file_name(name: str) -> str:
    """The name of a part's file for any spelling of the part's name, such as ``QuantizeOnnx``; an abbreviation is one
    word, as in ``RMSNorm``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return spaced.lower().replace("-", "_")
