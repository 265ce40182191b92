"""The shared cache on real services: Azure Blob (Azurite) and S3 (moto), four processes at once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest

from coldpress.jobs import remote as module
from coldpress.jobs.remote import Remote
from coldpress.jobs.store import Store
from tests.jobs.test_remote import at_once, stored
from tests.waiting import free_port, until

pytestmark = pytest.mark.full
#: of the account that every Azurite has; Microsoft documents it
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["azure", "s3"])
def url(request, monkeypatch, tmp_path):
    """The URL of a folder of an empty service."""
    import fsspec

    fsspec.AbstractFileSystem.clear_instance_cache()
    monkeypatch.setattr(module, "PIECE", 1000)
    port = free_port()
    if request.param == "azure":
        pytest.importorskip("adlfs")
        azurite = shutil.which("azurite-blob")
        if azurite is None:
            pytest.skip("needs Azurite: npm install -g azurite")
        command = [
            azurite,
            "--inMemoryPersistence",
            "--blobPort",
            str(port),
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        until(lambda: answers(port), "Azurite")
        place = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
        secret = f"AccountName=devstoreaccount1;AccountKey={_AZURITE_KEY}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{secret};{place};")
        fsspec.filesystem("az").mkdir("box")
        yield "az://box/results of all"
        process.kill()
        process.wait()
    else:
        pytest.importorskip("s3fs")
        server = pytest.importorskip("moto.server").ThreadedMotoServer(port=port, verbose=False)
        server.start()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22hunter22")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        fsspec.filesystem("s3").mkdir("box")
        yield "s3://box/results of all"
        server.stop()


def test_four_processes_write_the_same_results_and_poison_is_found(url, tmp_path):
    at_once(url, tmp_path)
    place = Remote(url)
    assert [key for key, _ in sorted(place.entries())] == [f"k{number}" for number in range(6)]
    poisoned = next(iter(place._listed("pieces")))
    place._files.pipe_file(poisoned, b"poison")
    stores = [Store(tmp_path / f"late-{number}", remote=place) for number in range(2)]
    found = [stores[0].take(f"k{number}") is None for number in range(6)]
    assert sum(found) == 1
    number = found.index(True)
    stored(stores[0], f"k{number}", seed=number)
    assert stores[1].take(f"k{number}") is not None
    assert place.collect(older_than_days=0)[0] == 6 and place.entries() == []


def test_wrong_credentials_are_said_before_work_without_them(url):
    if url.startswith("s3"):
        pytest.skip("moto takes any")
    wrong = "A" * 86 + "=="
    variables = {name: value.replace(_AZURITE_KEY, wrong) for name, value in os.environ.items()}
    program = "import sys; from coldpress.jobs.remote import Remote; Remote(sys.argv[1]).check()"
    command = [sys.executable, "-c", program, url]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    said = done.stderr.partition("_Failed: ")[2]
    assert "cannot look into the shared cache az://" in said and "are its credentials in the environment" in said
    assert wrong not in said
