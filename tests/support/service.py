"""A service that runs in a thread, and what tests send to it and read from it."""

from __future__ import annotations

import io
import re
import threading
import time
from contextlib import contextmanager

import httpx2 as httpx
import numpy as np
from PIL import Image

from pyinv.images import to_uint8
from pyinv.serving import create_app
from pyinv.serving.server import Server, listen

# Of the service's own values, not of the machine's speed: no test may take this long.
LONG = 30.0


@contextmanager
def served(inverter, **arguments):
    """Run a service in a thread; give its URL."""
    app = create_app(inverter, **arguments)
    bound = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=LONG) as client:
            wait_for(lambda: client.get("/readyz").status_code == 200)
            client.service = app.state.service
            client.server, client.thread = server, thread
            yield client
    finally:
        server.drain()
        thread.join()


def wait_for(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def measured(client, name):
    """The sum of a metric over its labels."""
    text = client.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


def free(client):
    """Whether no request and no target is left."""
    names = ("pyinv_lanes_active", "pyinv_queue", "pyinv_requests_active")
    return all(measured(client, name) == 0 for name in names)


def png(image):
    file = io.BytesIO()
    Image.fromarray(to_uint8(image[None], (-1, 1))[0, :, :, 0]).save(file, format="PNG")
    return file.getvalue()


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(to_uint8(image[None], (-1, 1))[0, :, :, 0]).save(file, format="JPEG")
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def refusal(answer, status, message):
    """The answer is an error of one line in JSON."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert answer.text.count("\n") == 1
