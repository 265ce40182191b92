"""What a graph is run on: batches of the user's data, a text that coldpress ships, or random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.data.batches.calibration import windows
from coldpress.errors import ColdpressError
from coldpress.graphs import made_up
from coldpress.graphs.session import Session
from coldpress.graphs.signature import signature
from coldpress.models.model import Model
from coldpress.parts import Context, DataSource
from coldpress.target import Target

if TYPE_CHECKING:
    from coldpress.graphs.imported.inputs import Inputs


@dataclass(frozen=True)
class Feeds:
    """``each`` begins the feeds anew, name of an input -> array; ``text`` says for a report what they are.

    ``are_random``: whether they say nothing about what the model will see.
    """

    each: Callable[[], Iterator[dict[str, Any]]]
    text: str
    are_random: bool = False


def feeds_for(
    model: Model, graph: Path, data: DataSource | None, ctx: Context, *, samples: int, length: int | None = None
) -> Feeds:
    """At most ``samples`` feeds for a graph of a model.

    Without ``data``: windows of ``length`` tokens of the shipped text where the graph takes text and a tokenizer lies
    beside it, random numbers in the shapes of the inputs otherwise.
    """
    from coldpress.graphs.imported.inputs import Inputs
    from coldpress.models.onnx_graphs import load_graph

    if data is not None:
        source = data
        return Feeds(
            lambda: ({**batch.inputs} for batch in islice(source.batches(model, ctx), samples)),
            f"data of kind {data.type}",
        )
    folder = model.path if model.path.is_dir() else model.path.parent
    inputs = Inputs.of(load_graph(graph).graph, folder)
    if inputs.takes_text and (folder / "tokenizer.json").is_file():
        return _text(inputs, model, ctx, samples, length or 128)
    return Feeds(lambda: _made_up(graph, folder, samples, length, ctx.seed), "random numbers", are_random=True)


def _made_up(graph: Path, folder: Path, samples: int, length: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Made-up inputs of the first of some usual sizes with which the graph runs; ``length`` is tried before those."""
    inputs = signature(graph)
    wanted = (replace(made_up.TRIES[0], size=length),) if length else ()
    tries = (*wanted, *made_up.TRIES)
    session = Session(graph, Target())
    how = next((how for how in tries if _runs(session, made_up.feed(inputs, folder, how, seed))), tries[0])
    for sample in range(samples):
        yield made_up.feed(inputs, folder, how, seed + sample)


def _runs(session: Session, feed: dict[str, Any]) -> bool:
    try:
        session.outputs_for(feed)
    except ColdpressError:
        return False
    return True


def _text(inputs: Inputs, model: Model, ctx: Context, samples: int, length: int) -> Feeds:
    fixed = inputs.wanted["input_ids"][1][-1]
    source = DataSource("calibration_text", {"max_seq_len": fixed or length, "max_samples": samples})
    text = windows(source, model, ctx)
    return Feeds(lambda: inputs.of_windows(text.ids), text.sources)
