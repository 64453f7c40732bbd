"""``pyinv serve``: it starts, answers, and ends on signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from pyinv.cli import main
from pyinv.errors import BundleError
from pyinv.inverter import Inverter
from support.tiny_bundle import write_tiny_bundle

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx2"):
    pytest.importorskip(package)

import httpx2 as httpx  # noqa: E402

from support.service import LONG, measured, npy, wait_for  # noqa: E402

PYINV = [sys.executable, "-c", "import sys; from pyinv.cli import main; sys.exit(main())"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@contextmanager
def started(*arguments):
    """Run the command; give its process and a client."""
    command = [*PYINV, "serve", *map(str, arguments), "--json"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, timeout=LONG) as client:
            wait_for(lambda: client.get("/readyz").status_code == 200)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def test_it_answers_and_ends_on_sigterm(bundle_path, tmp_path):
    inverter = Inverter(bundle_path, threads=1)
    images = inverter.generate(inverter.sample(2))
    with started(bundle_path, "--timeout", 20, "--seed", 3) as (process, client):
        answer = client.post("/invert", content=npy(images)).json()
        found = inverter.invert(images, seed=3)
        latents = [result["latent"] for result in answer["results"]]
        np.testing.assert_allclose(latents, found.latents, atol=1e-4)
        assert (answer["recipe"], answer["seed"]) == ("default", 3)
        assert client.post("/invert?recipe=adam", content=npy(images)).status_code == 400
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[0].startswith(f"serving {bundle_path} on http://127.0.0.1:")
    assert err.splitlines()[1:] == ["stopped"]


def test_a_second_signal_ends_it_at_once(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    with (
        started(tmp_path / "b", "--recipe", "adam") as (process, client),
        socket.create_connection(("127.0.0.1", client.base_url.port)) as slow,
    ):
        # A request that never gets its body.
        slow.sendall(b"POST /invert HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        wait_for(lambda: measured(client, "pyinv_requests_active") == 1)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert err.splitlines()[1:] == ["stopped"]


def test_errors_come_before_it_listens(bundle_path, tmp_path, capsys):
    cases = [
        ([tmp_path / "nothing"], "nothing"),
        ([bundle_path, "--timeout", "0"], "timeout must be"),
        ([bundle_path, "--recipe", "fastest"], "unknown recipe 'fastest'"),
        ([bundle_path, "--host", "203.0.113.1"], "cannot listen on 203.0.113.1, port 8000"),
        ([bundle_path, "--port", "70000"], "port must be a whole number >= 0 and <= 65535"),
        ([bundle_path, "--workers", "0"], "workers must be"),
    ]
    for arguments, message in cases:
        assert main(["serve", *map(str, arguments)]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_a_stream_that_cannot_be_opened_ends_it(bundle_path, monkeypatch, capsys):
    def failing(inverter, plan, **arguments):
        raise BundleError("objective_mse.onnx: cannot be loaded; export the bundle again")

    monkeypatch.setattr(Inverter, "_open_stream", failing)
    assert main(["serve", str(bundle_path), "--port", "0"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "pyinv: error: objective_mse.onnx: cannot be loaded; export the bundle again"


def test_without_the_extra(monkeypatch, bundle_path, capsys):
    for name in [name for name in sys.modules if name.startswith("pyinv.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    monkeypatch.setitem(sys.modules, "python_multipart.multipart", None)
    assert main(["serve", str(bundle_path)]) == 1
    err = capsys.readouterr().err
    assert "the service needs python_multipart" in err
    assert "pip install" in err
