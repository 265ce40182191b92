"""Small configurations of Olive's, translated."""

from __future__ import annotations

from typing import Any

import pytest

from coldpress.workflow.olive.translation import Translation, translate

MODEL = {"type": "HfModel", "model_path": "some/model"}
#: what a search compares
EVALUATOR = {"metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}]}


@pytest.fixture
def translated():
    """``translated(**keys)``: a configuration of a Hugging Face model with these keys, which must have no problem."""

    def translation(**keys: Any) -> Translation:
        found = translate({"input_model": MODEL, "passes": {"press": builder()}, **keys})
        assert not found.problems, [str(problem) for problem in found.problems]
        return found

    return translation


@pytest.fixture
def refused():
    """``refused(place, **keys)``: the one problem of a configuration, which is at ``place``."""

    def problem(place: str, **keys: Any) -> Any:
        found = translate({"input_model": MODEL, "passes": {"press": builder()}, **keys}).problems
        assert [one.place for one in found] == [place], [str(one) for one in found]
        return found[0]

    return problem


def builder(**parameters: Any) -> dict[str, Any]:
    return {"type": "ModelBuilder", "config": {"precision": "int4", **parameters}}
