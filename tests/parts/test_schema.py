from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from coldpress.errors import ColdpressError
from coldpress.parts import schema


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    kind: str = field(default="a", metadata={"choices": ("a", "b")})
    maybe: Inner | None = None


def test_builds_nested_data():
    made = schema.build(Outer, {"name": "x", "inner": {"size": 2}, "many": [{"size": 3}], "maybe": {"size": 4}})
    assert made == Outer("x", Inner(2), (Inner(3),), "a", Inner(4))


def test_plain_and_back():
    made = Outer("x", Inner(2), (Inner(3),))
    assert schema.build(Outer, schema.plain(made)) == made


@pytest.mark.parametrize(
    ("data", "place", "hint"),
    [
        ({"name": "x", "iner": {}}, "iner", "inner"),
        ({"name": "x", "inner": {"siez": 1}}, "inner.siez", "size"),
        ({"name": "x", "many": [{"size": 1}, {"sise": 1}]}, "many[1].sise", "size"),
        ({"name": "x", "maybe": {"sice": 1}}, "maybe.sice", "size"),
        ({"name": "x", "kind": "c"}, "kind", ""),
    ],
)
def test_names_the_place_and_the_closest_key(data, place, hint):
    with pytest.raises(ColdpressError) as caught:
        schema.build(Outer, data, "file.yaml")
    assert place in caught.value.message
    assert caught.value.message.startswith("file.yaml")
    assert hint in (caught.value.hint or "")


def test_names_the_place_of_a_wrong_type():
    with pytest.raises(ColdpressError) as caught:
        schema.build(Outer, {"name": "x", "inner": {"size": "large"}}, "file.yaml")
    assert "inner.size" in caught.value.message and "a whole number" in caught.value.message
