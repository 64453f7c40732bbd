"""The example of a web service: what it answers to an image, and to what is none."""

from __future__ import annotations

import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pyinv
from pyinv.images import to_uint8

pytest.importorskip("fastapi")
pytest.importorskip("httpx2", reason="fastapi's TestClient needs it")

from fastapi.testclient import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_app.py"


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(service):
    with TestClient(service.app) as client:
        yield client


def picture(service, seed):
    images = service.inverter.generate(service.inverter.sample(1, seed=seed))
    file = io.BytesIO()
    Image.fromarray(to_uint8(images, (-1, 1))[0, :, :, 0]).save(file, format="PNG")
    return file.getvalue()


def test_an_image_is_answered_with_its_latent(service, client):
    body = picture(service, 3)
    answer = client.post("/invert?recipe=reconstruct&seed=5", content=body)
    assert answer.status_code == 200
    image = pyinv.load_images(io.BytesIO(body), service.inverter.manifest)
    expected = service.inverter.invert(image, recipe="reconstruct", seed=5)
    found = answer.json()
    np.testing.assert_array_equal(np.float32(found["latent"]), expected.latents[0])
    assert found["loss"] == float(expected.loss[0]) < 1e-4
    assert found["psnr"] == float(expected.psnr[0])
    assert found["status"] == pyinv.Status(int(expected.status[0])).name.lower()


def test_numbers_that_json_does_not_have_become_null(service):
    assert service.finite(np.float32("inf")) is None
    assert service.finite(np.float32("nan")) is None
    assert service.finite(np.float32(0.5)) == 0.5


def test_requests_at_the_same_time_get_their_own_answers(service, client):
    bodies = [picture(service, seed) for seed in range(6)]
    url = "/invert?recipe=reconstruct"
    alone = [client.post(url, content=body).json() for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: client.post(url, content=body).json(), bodies))
    assert together == alone


@pytest.mark.parametrize(
    ("url", "body", "code", "message"),
    [
        ("/invert", b"no image", 422, "not a readable image"),
        ("/invert?recipe=fastest", None, 400, "unknown recipe 'fastest'"),
        ("/invert?seed=-1", None, 422, "seed must be a whole number >= 0"),
    ],
)
def test_what_is_wrong_is_said(service, client, url, body, code, message):
    answer = client.post(url, content=picture(service, 0) if body is None else body)
    assert answer.status_code == code
    assert message in answer.json()["detail"]
