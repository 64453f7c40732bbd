"""Changed requests to the service: answered or refused in one line, never by a status of 500."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path

import httpx2 as httpx
import numpy as np
from fuzz.mutation import mutated, mutated_png

from pyinv.inverter import Inverter
from pyinv.recipes import Recipe, Stage
from pyinv.serving import Limits, create_app
from pyinv.serving.server import Server, listen
from pyinv.solvers import Adam
from support.service import free, jpeg, npy, png, wait_for
from support.tiny_bundle import write_tiny_bundle

QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=3))
LIMITS = Limits(timeout=15, max_body=200_000, max_pixels=10_000, max_images=4, queue=8)
BOUNDARY = "bb"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
WORDS = (
    "",
    "0",
    "-1",
    "1e999",
    "nan",
    "9" * 400,
    "{",
    "[" * 2000,
    '{"label": 1}',
    "quick",
    "\0",
    "é",
)
PARAMETERS = (
    "recipe",
    "loss",
    "effort",
    "seed",
    "id",
    "conditions",
    "timeout",
    "fit",
    "format",
    "x",
)


def form(**fields: str | bytes) -> bytes:
    """Return a form's body; bytes are files."""
    body = b""
    for name, value in fields.items():
        file = '; filename="a"' if isinstance(value, bytes) else ""
        body += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        )
        body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


@functools.cache
def service() -> tuple[httpx.Client, list[tuple[str, bytes, dict[str, str]]]]:
    """Return a client of a service that runs until the process ends, and valid requests."""
    write_tiny_bundle(Path("bundle"))
    inverter = Inverter("bundle", threads=1, batch_size=4)
    app = create_app(inverter, recipes=(QUICK,), limits=LIMITS)
    bound = listen("127.0.0.1", 0)
    # A daemon, which ends with the process.
    threading.Thread(target=Server(app).run, args=([bound],), daemon=True).start()
    client = httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=20)
    wait_for(lambda: client.get("/readyz").status_code == 200)
    latents = inverter.sample(2)
    images = inverter.generate(latents)
    requests = [
        ("/invert", png(images[0]), {}),
        ("/invert", jpeg(images[0]), {}),
        ("/invert", npy(images), {}),
        ("/invert", form(images=png(images[0]), seed="3", id="x", timeout="2"), FORM),
        ("/generate", npy(latents), {}),
        ("/generate", json.dumps({"latents": latents.tolist()}).encode(), {}),
        ("/evaluate", form(images=npy(images), latents=npy(latents), loss="mse"), FORM),
        ("/encode", png(images[0]), {}),
    ]
    return client, requests


def prepare() -> None:
    service()


def check(number: int) -> None:
    random = np.random.default_rng(number)
    client, requests = service()
    path, body, headers = requests[number % len(requests)]
    parameters = {}
    if random.random() < 0.3:
        name = PARAMETERS[random.integers(len(PARAMETERS))]
        parameters[name] = WORDS[random.integers(len(WORDS))]
    if random.random() < 0.9:
        change = mutated_png if body.startswith(b"\x89PNG") and random.random() < 0.7 else mutated
        body = change(body, random)
    if random.random() < 0.1:
        headers = headers | {"content-type": WORDS[random.integers(5)] + '/x; boundary="b'}
    answer = client.post(path, content=body, headers=headers, params=parameters)
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.text.rstrip("\n").isprintable(), answer.text
    if number % 100 == 0:
        wait_for(lambda: free(client))
