"""What libraries find in the environment once coldpress is imported, there and in the processes that measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def environment_of(given: dict[str, str], code: str = "import coldpress") -> dict[str, str]:
    """What a child of a program finds that was started with ``given``."""
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    tell = f"import json, os; print(json.dumps({{name: os.environ.get(name) for name in {NAMES}}}))"
    program = f"{code}\nimport subprocess, sys; subprocess.run([sys.executable, '-c', {tell!r}], check=True)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**others, **given}, capture_output=True, text=True, check=True
    )
    return {name: value for name, value in json.loads(done.stdout).items() if value is not None}


def test_nothing_is_reported_and_threads_that_wait_sleep():
    found = environment_of({})
    assert found.pop("ORT_DISABLE_TELEMETRY") == found.pop("HF_HUB_DISABLE_TELEMETRY") == "1"
    assert found.pop("OMP_WAIT_POLICY") == "PASSIVE"
    assert int(found.pop("GOMP_SPINCOUNT")) < 1000
    assert found == {}


@pytest.mark.parametrize(
    "given",
    [
        {"ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0", "OMP_WAIT_POLICY": "ACTIVE"},
        {"ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0", "KMP_BLOCKTIME": "200"},
    ],
)
def test_what_the_user_has_set_stays(given):
    assert environment_of(given) == given


def test_what_is_timed_runs_as_in_an_app():
    """Unless it is the user who wants threads to wait otherwise."""
    timed = "from coldpress import environment; environment.as_for_an_app()"
    assert {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}.isdisjoint(environment_of({}, timed))
    assert environment_of({"OMP_WAIT_POLICY": "PASSIVE"}, timed)["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(
    "text",
    [
        "hf_token=hidden123 was refused", "client_secret: hidden123", "?X-Amz-Signature=hidden123&x=1",
        "https://user:hidden123@host/place", "Authorization: Bearer hidden123", '{"token": "hidden123"}', "sig=hidden123",
    ],
)  # fmt: skip
def test_no_secret_is_told(text):
    from coldpress.environment import without_secrets

    assert "hidden123" not in without_secrets(text) and "***" in without_secrets(text)
    for harmless in ("4,096 tokens: 12 in each of 3 rows", "a special token: <s>"):
        assert without_secrets(harmless) == harmless
