"""``search_strategy``, in its older and newer shapes, and ``auto_optimizer_config``."""

from __future__ import annotations

from functools import partial
from typing import Any

from coldpress.errors import did_you_mean
from coldpress.target import Target
from coldpress.workflow import Step
from coldpress.workflow.check import check_step
from coldpress.workflow.olive.reading import Section
from coldpress.workflow.recipes import press_recipe

_SAMPLERS = {"sequential": "grid", "exhaustive": "grid", "random": "random", "tpe": "tpe"}
_ORDERS = {"joint": "joint", "pass-by-pass": "pass_by_pass"}
_KEPT = {
    "max_iter": ("trials", int),
    "stop_when_goals_met": ("stop_when_goals_met", bool),
    "output_model_num": ("keep", int),
}


def read_strategy(root: Section, workflow: dict[str, Any]) -> tuple[bool, bool]:
    """Puts the search into ``workflow``; whether there is one, and whether it tries parameters that nobody gave.

    ``true`` is every point, all passes at once.
    """
    value = root.take("search_strategy", False)
    if value is False:
        return False, False
    if value is True:
        workflow["search"] = {"sampler": "grid"}
        return True, True
    strategy = root.inner("search_strategy", ("search_algorithm_config", "sampler_config"))
    search: dict[str, Any] = {}
    order = strategy.take("execution_order", "joint", of=str)
    search["order"] = _picked(strategy, "execution_order", order, _ORDERS)
    keys = [name for name in ("search_algorithm", "sampler") if name in strategy]
    for key in keys or ["sampler"]:
        search["sampler"] = _picked(strategy, key, strategy.take(key, "sequential", of=str), _SAMPLERS)
        if search["sampler"] == "grid":
            strategy.anyway(key)
    search |= {ours: strategy.take(theirs, of=kind) for theirs, (ours, kind) in _KEPT.items()}
    if seconds := strategy.take("max_time", of=float):
        search["minutes"] = seconds / 60
    opens = strategy.take("include_pass_params", True, of=bool)
    search |= _limited(strategy, search.get("trials"))
    seed = strategy.take("seed", of=int)
    workflow |= {} if seed is None else {"seed": seed}
    strategy.close("search_strategy")
    workflow["search"] = {name: value for name, value in search.items() if value is not None}
    return True, opens


def _limited(strategy: Section, trials: int | None) -> dict[str, int]:
    """The smallest of the numbers of points that a strategy allows, in its older and newer names; 0 is no limit."""
    counts = {name: strategy.take(name, 0, of=int) for name in ("num_samples", "max_samples")}
    allowed = {name: count for name, count in {**counts, "max_iter": trials}.items() if count}
    least = min(allowed.values(), default=None)
    for name, count in allowed.items():
        if count != least or list(allowed.values()).count(least) > 1:
            strategy.log.note(strategy.place_of(name), f"no effect: the least of {', '.join(allowed)} counts")
    return {"trials": least} if least else {}


def _picked(section: Section, key: str, value: str, known: dict[str, str]) -> str | None:
    if value not in known:
        section.log.refuse(section.place_of(key), f"{value!r} is not a choice", did_you_mean(value, known))
    return known.get(value)


def read_auto_optimizer(root: Section, kind: str, searches: bool) -> list[Step]:
    """The passes that take the place of Olive's optimizer, where a configuration asks for it and names no pass.

    One that does neither measures the model as it is.
    """
    config = root.inner("auto_optimizer_config")
    precisions = [str(value) for _, value in config.items("precisions") if value]
    disabled = config.take("disable_auto_optimizer", False, of=bool)
    config.close("auto_optimizer_config")
    if disabled or "auto_optimizer_config" not in root:
        root.log.note("passes", "no pass is named: the model is measured as it is")
        if disabled:
            given = root.take("auto_optimizer_config")
            root.log.note(root.place_of("auto_optimizer_config"), "no effect: the optimizer is disabled", given)
        return []
    if kind == "onnx":
        root.log.refuse("passes", "an ONNX model without passes: nothing says what to do with it", "name a pass")
        return []
    root.log.note("passes", "no pass is named: coldpress's own recipe takes the place of Olive's optimizer")
    root.log.note(root.place_of("auto_optimizer_config"), "it asks for this recipe")
    steps = list(press_recipe({"precision": next(iter(precisions), None)}, Target()))
    if len(precisions) > 1 and searches:
        steps = [Step("press", {"precision": {"choice": precisions}})]
    elif len(precisions) > 1:
        root.log.note(config.place_of("precisions"), f"without a search the first is made: {precisions[0]}")
    for step in steps:
        root.log.attempt("", partial(check_step, step, config.place_of("precisions"), config.place_of("precisions")))
    return steps
