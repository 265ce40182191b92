"""What every registered pass, metric and kind of data must keep, whoever wrote it."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from coldpress import parts
from coldpress.errors import ColdpressError
from coldpress.jobs.system import System
from coldpress.models.model import FORMATS
from coldpress.parts import schema
from coldpress.parts.task import PRECISIONS, Task, task_of_class

PASSES = [parts.find("passes", name) for name in parts.names("passes")]
SYSTEMS = [parts.find("systems", name) for name in parts.names("systems")]
METRICS = [parts.find("metrics", name) for name in parts.names("metrics")]
DATA = [parts.find("data", name) for name in parts.names("data")]
TASKS = [parts.find("tasks", name) for name in parts.names("tasks")]


@pytest.mark.parametrize("part", PASSES, ids=lambda part: part.__name__)
class TestPass:
    def test_is_a_frozen_dataclass(self, part):
        assert issubclass(part, parts.Pass)
        assert dataclasses.is_dataclass(part) and part.__dataclass_params__.frozen

    def test_every_parameter_says_what_it_does(self, part):
        for field in dataclasses.fields(part):
            assert len(field.metadata.get("help", "")) > 10, field.name

    def test_defaults_are_among_the_choices(self, part):
        for field in dataclasses.fields(part):
            if field.metadata.get("choices") and field.default is not None:
                assert field.default in field.metadata["choices"]

    def test_formats_are_known(self, part):
        assert part.accepts and set(part.accepts) <= set(FORMATS)
        assert part.produces in FORMATS

    def test_survives_a_trip_through_plain_data(self, part):
        made = part()
        assert schema.build(part, schema.plain(made), "again") == made

    def test_refuses_an_unknown_parameter_with_the_closest(self, part):
        name = next((field.name for field in dataclasses.fields(part)), "")
        with pytest.raises(ColdpressError, match=f"there is no '{name}x' here") as caught:
            schema.build(part, {f"{name}x": 1}, part.__name__)
        assert name in (caught.value.hint or "")

    def test_its_file_is_documented(self, part):
        assert len(sys.modules[part.__module__].__doc__ or "") > 40


@pytest.mark.parametrize("part", METRICS, ids=lambda part: part.__name__)
class TestMetric:
    def test_describes_its_values(self, part):
        assert part.values
        for value in part.values.values():
            assert value.better in ("lower", "higher", "neither")

    def test_is_a_frozen_dataclass_with_defaults(self, part):
        assert issubclass(part, parts.Metric)
        assert part() == schema.build(part, {}, part.__name__)

    def test_accepts_known_formats(self, part):
        assert part.accepts and set(part.accepts) <= set(FORMATS)

    def test_is_documented(self, part):
        assert part.__doc__ and sys.modules[part.__module__].__doc__

    def test_every_parameter_says_what_it_does(self, part):
        for field in dataclasses.fields(part):
            assert len(field.metadata.get("help", "")) > 8, field.name

    def test_a_quick_look_is_a_request_that_can_be_made(self, part):
        assert schema.build(part, dict(getattr(part, "quick", {})), part.__name__)


@pytest.mark.parametrize("part", DATA, ids=lambda part: part.__name__)
class TestData:
    def test_is_a_frozen_dataclass_with_defaults(self, part):
        assert issubclass(part, parts.Data) and part.__dataclass_params__.frozen
        assert part() == schema.build(part, {}, part.__name__)

    def test_every_parameter_says_what_it_does(self, part):
        for field in dataclasses.fields(part):
            assert len(field.metadata.get("help", "")) > 8, field.name

    def test_files_that_count_are_parameters(self, part):
        assert set(part.reads) <= {field.name for field in dataclasses.fields(part)}

    def test_accepts_known_formats(self, part):
        assert part.accepts and set(part.accepts) <= set(FORMATS)

    def test_is_documented(self, part):
        assert part.__doc__ and len(sys.modules[part.__module__].__doc__ or "") > 40

    def test_survives_a_trip_through_plain_data(self, part):
        made = part()
        assert schema.build(part, schema.plain(made), "again") == made


@pytest.mark.parametrize("part", TASKS, ids=lambda part: part.__name__)
class TestTask:
    def test_its_words_are_there(self, part):
        assert issubclass(part, Task) and part.title
        assert bool(part.pipeline) == bool(part.classes) == bool(part.loader)  # none of them for modules of one's own
        assert part.__doc__ and len(sys.modules[part.__module__].__doc__ or "") > 40

    def test_what_it_names_exists(self, part):
        import transformers

        assert not part.loader or hasattr(transformers, part.loader)
        values = {name for kind in _metrics_of(part) for name in parts.find("metrics", kind).values}
        assert {one.name for one in part.criteria} <= values
        assert all(parts.find("metrics", name) for name in part.metrics)
        assert part.labelled is None or parts.find("data", part.labelled)

    def test_each_limit_is_for_every_precision_and_looser_for_fewer_bits(self, part):
        limited = [one for one in part.criteria if one.limits]
        assert limited and part.percent in (None, *(one.name for one in limited))
        for one in limited:
            limits = [one.limits[precision] for precision in PRECISIONS]
            assert one.says and limits == sorted(limits, reverse=one.better == "higher")

    def test_its_classes_are_its_own(self, part):
        for ending in part.classes:
            assert type(task_of_class(f"Some{ending}")) is part


def _metrics_of(task):
    return [name for name in (task.metric, task.adapter_metric) if name]


@pytest.mark.parametrize("part", SYSTEMS, ids=lambda part: part.__name__)
class TestSystem:
    def test_is_a_frozen_dataclass_with_defaults(self, part):
        assert issubclass(part, System) and part.title
        assert part() == schema.build(part, {}, part.__name__)

    def test_every_parameter_says_what_it_does(self, part):
        for field in dataclasses.fields(part):
            assert len(field.metadata.get("help", "")) > 5, field.name

    def test_is_ready_or_says_what_to_do(self, part):
        try:
            part().check()
        except ColdpressError as error:
            assert part.is_ready or ("later capability" in error.message and "--system local" in (error.hint or ""))
            assert error.hint
        else:
            assert part.is_ready


@pytest.mark.parametrize("kind", parts.KINDS)
def test_an_unknown_part_is_refused_with_a_suggestion(kind):
    known = next(iter(parts.names(kind)))
    with pytest.raises(ColdpressError) as caught:
        parts.find(kind, known + "z")
    assert known in (caught.value.hint or "")


def test_camel_case_names_are_found_too():
    assert parts.find("passes", "Press") is parts.find("passes", "press")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("passes", "metrics", "data", "samplers", "systems") for name in parts.names(kind)],
)
def test_every_part_has_an_example_of_its_work_and_of_what_it_refuses(kind, name):
    from tests.parts import examples

    lacking = examples.missing(kind, name, getattr(parts.find(kind, name), "accepts", ()))
    assert not lacking, lacking
