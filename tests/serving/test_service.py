"""The service: its answers, what it refuses, and what is left of requests that end early."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import pyinv
from pyinv import RunError
from pyinv.images import to_uint8
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe, Stage
from pyinv.session import StreamRun, _open_runs
from pyinv.solvers import LBFGS, Adam
from support.tiny_bundle import write_tiny_bundle

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx2"):
    pytest.importorskip(package)

import httpx2 as httpx  # noqa: E402

from pyinv.serving import Limits, create_app  # noqa: E402
from pyinv.serving.server import Server, listen  # noqa: E402
from support.service import LONG, free, jpeg, measured, npy, png, refusal, served, wait_for  # noqa: E402

QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))
# Ends at very different times.
UNEVEN = Recipe("uneven", Stage(LBFGS(), max_steps=300, loss_tolerance=1e-7), restarts=3)
ENDLESS = Recipe("endless", Stage(Adam(1e-6), max_steps=10**8))
RECIPES = (QUICK, UNEVEN, ENDLESS, "default")
LIMITS = Limits(timeout=30, max_body=200_000, max_pixels=10_000, max_images=8, queue=12, streams=3)
LANES = 4


@pytest.fixture(scope="module")
def inverter(bundle_path):
    return Inverter(bundle_path, threads=1, batch_size=LANES)


@pytest.fixture(scope="module")
def client(inverter):
    with served(inverter, recipes=RECIPES, limits=LIMITS) as client:
        yield client
        assert measured(client, "pyinv_failures_total") == 0
        assert measured(client, "pyinv_lanes_active") == measured(client, "pyinv_queue") == 0


@pytest.fixture(scope="module")
def images(inverter):
    return inverter.generate(inverter.sample(16, seed=3))


def read(data, inverter):
    return pyinv.load_images(io.BytesIO(data), inverter.manifest)


def assert_is(results, found):
    """The results in JSON are those of ``invert``."""
    for row, result in enumerate(results):
        np.testing.assert_allclose(result["latent"], found.latents[row], atol=1e-4)
        np.testing.assert_allclose(result["loss"], found.loss[row], rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(result["psnr"], found.psnr[row], rtol=1e-3)
        assert result["status"] == pyinv.Status(int(found.status[row])).name.lower()
        assert result["steps"] == found.steps[row]
        assert result["attempts"] == found.attempts[row]
    assert len(results) == len(found)


# Answers


def test_bodies_of_every_kind(client, inverter, images):
    one, array = png(images[0]), npy(images[:3])
    eight_bit = npy(to_uint8(images[:2], (-1, 1)))
    bodies = {
        "png": ({"content": one}, read(one, inverter)),
        "png, called a form": (
            {"content": one, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
            read(one, inverter),
        ),
        "jpeg": ({"content": jpeg(images[1])}, read(jpeg(images[1]), inverter)),
        "npy": ({"content": array}, images[:3]),
        "one image": ({"content": npy(images[4, 0])}, images[4:5]),
        "uint8": (
            {"content": eight_bit},
            np.concatenate([read(png(x), inverter) for x in images[:2]]),
        ),
        "fortran": ({"content": npy(np.asfortranarray(images[:3]))}, images[:3]),
        "form": ({"files": {"images": ("a.png", one)}}, read(one, inverter)),
        "form of several": (
            {"files": [("images", ("a.png", one)), ("images", ("b.npy", array))]},
            np.concatenate([read(one, inverter), images[:3]]),
        ),
        "chunks": ({"content": iter([one[:50], one[50:]])}, read(one, inverter)),
    }
    for name, (body, expected) in bodies.items():
        answer = client.post("/invert", **body)
        assert answer.status_code == 200, (name, answer.text)
        assert_is(answer.json()["results"], inverter.invert(expected, recipe=QUICK))


@pytest.mark.parametrize("recipe", [QUICK, UNEVEN, "default"])
def test_parameters(client, inverter, images, recipe):
    name = recipe if isinstance(recipe, str) else recipe.name
    query = {"recipe": name, "seed": "7", "id": ["cat", "12"]}
    answer = client.post("/invert", params=query, content=npy(images[:2])).json()
    ids = [pyinv.target_id("cat"), 12]
    found = inverter.invert(images[:2], recipe=recipe, seed=7, target_ids=ids)
    assert_is(answer["results"], found)
    assert [result["id"] for result in answer["results"]] == ["cat", 12]
    assert (answer["recipe"], answer["seed"]) == (name, 7)
    form = {"recipe": name, "seed": "7", "id": ["cat", "12"], "effort": ""}
    files = {"images": ("a.npy", npy(images[:2]))}
    assert client.post("/invert", data=form, files=files).json() == answer


def test_losses_and_efforts(client, inverter, images):
    answer = client.post("/invert?loss=l1", content=npy(images[0])).json()
    found = inverter.invert(images[:1], recipe=QUICK, loss="l1")
    np.testing.assert_allclose(answer["results"][0]["latent"], found.latents[0], atol=1e-4)
    assert answer["results"][0]["psnr"] is None
    answer = client.post("/invert?recipe=default&effort=fast", content=npy(images[0])).json()
    assert_is(answer["results"], inverter.invert(images[:1], effort="fast"))


def test_latents_as_npy(client, inverter, images):
    found = inverter.invert(images[:2], recipe=QUICK)
    for ask in ({"headers": {"Accept": "application/x-npy"}}, {"params": {"format": "npy"}}):
        answer = client.post("/invert", content=npy(images[:2]), **ask)
        assert answer.headers["content-type"] == "application/x-npy"
        statuses = ",".join(pyinv.Status(int(status)).name.lower() for status in found.status)
        assert answer.headers["pyinv-status"] == statuses
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), found.latents, atol=1e-4)


def test_generate(client, inverter):
    latents = inverter.sample(3)
    expected = inverter.generate(latents)
    listed = latents.tolist()
    for body in (
        {"content": npy(latents)},
        {"json": listed},
        {"json": {"latents": listed}},
        # As curl --data-binary sends it.
        {
            "content": json.dumps(listed),
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        },
        {"files": {"latents": ("z.npy", npy(latents))}},
        {"data": {"latents": json.dumps(listed)}, "files": {"latents": ("", b"")}},
    ):
        answer = client.post("/generate?format=npy", **body)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected, atol=1e-6)
    one = client.post("/generate", content=npy(latents[:1]))
    assert one.headers["content-type"] == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(one.content)))
    np.testing.assert_array_equal(pixels, to_uint8(expected[:1], (-1, 1))[0, :, :, 0])
    assert Image.open(io.BytesIO(client.post("/generate", content=npy(latents)).content)).size > (
        8,
        8,
    )


def test_evaluate(client, inverter, images):
    latents = inverter.sample(2, seed=9)
    files = {"images": ("x.npy", npy(images[:2])), "latents": ("z.npy", npy(latents))}
    for query, loss in (({}, "mse"), ({"loss": "l1"}, "l1")):
        answer = client.post("/evaluate", files=files, params=query).json()
        losses, gradients = inverter.evaluate(latents, images[:2], loss=loss)
        assert answer["name"] == loss
        results = answer["results"]
        np.testing.assert_allclose([one["loss"] for one in results], losses, rtol=1e-5)
        np.testing.assert_allclose([one["gradient"] for one in results], gradients, atol=1e-6)
    files["latents"] = ("z.npy", npy(latents[:1]))
    refusal(client.post("/evaluate", files=files), 422, "give one latent per image, got 1 for 2")


def test_encode_needs_an_encoder(client, images):
    refusal(client.post("/encode", content=png(images[0])), 400, "no encoder")


def test_conditions(tmp_path):
    write_tiny_bundle(tmp_path / "b", condition_size=2)
    inverter = Inverter(tmp_path / "b", threads=1, batch_size=2)
    given = np.float32([[0.5, -1], [0.25, 2]])
    latents = inverter.sample(2)
    images = inverter.generate(latents, conditions=given)
    query = {"conditions": json.dumps({"condition": given.tolist()})}
    with served(inverter, recipes=(QUICK,), limits=LIMITS) as client:
        answer = client.post("/invert", params=query, content=npy(images))
        found = inverter.invert(images, recipe=QUICK, conditions=given)
        assert_is(answer.json()["results"], found)
        answer = client.post("/generate", params={**query, "format": "npy"}, content=npy(latents))
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), images, atol=1e-6)
        refusal(client.post("/invert", content=npy(images)), 400, "this bundle needs conditions")
        query = {"conditions": "{"}
        refusal(client.post("/invert", params=query, content=npy(images)), 422, "not valid JSON")


def test_answers_are_not_crossed(client, inverter, images):
    """Many clients at once get what each would get alone."""
    found = {recipe.name: inverter.invert(images, recipe=recipe) for recipe in (QUICK, UNEVEN)}

    def ask(number):
        row, recipe = number % len(images), ("quick", "uneven")[number // len(images) % 2]
        query = {"recipe": recipe, "id": str(row)}
        answer = client.post("/invert", params=query, content=npy(images[row]))
        if answer.status_code == 503:
            return ask(number)
        assert_is(answer.json()["results"], found[recipe][row])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(4 * len(images))))
    assert free(client)


# Refusals


GOOD = png(np.zeros((1, 8, 8), np.float32))


def header(width, height):
    """A PNG file of this size without its pixels."""

    def chunk(content):
        length, check = len(content) - 4, zlib.crc32(content)
        return struct.pack(">I", length) + content + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return GOOD[:8] + chunk(b"IHDR" + size) + chunk(b"IDAT" + zlib.compress(b"")) + chunk(b"IEND")


def npy_header(text):
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


BODIES = {
    "empty": (b"", 400, "the body is empty"),
    "text": (b"hello", 415, "the body: expected a PNG, JPEG or .npy file"),
    "a gif": (b"GIF89a" + bytes(100), 415, "expected a PNG, JPEG or .npy file"),
    "npz": (b"PK\x03\x04" + bytes(100), 415, "expected a PNG, JPEG or .npy file"),
    "no png": (GOOD[:8] + bytes(100), 422, "the body: not a readable image, or truncated"),
    "half a png": (GOOD[:50], 422, "the body: not a readable image"),
    "half a jpeg": (jpeg(np.zeros((1, 64, 64), np.float32))[:200], 422, "not a readable image"),
    "a bomb": (header(50_000, 50_000), 413, "an image may have at most 10000 pixels, got more"),
    "a smaller bomb": (header(10_000, 10_000), 413, "an image may have at most 10000 pixels"),
    "too large": (png(np.zeros((1, 101, 100), np.float32)), 413, "pixels, got 101 x 100"),
    "a long body": (bytes(200_001), 413, "the body must be at most 200000 bytes"),
    "objects": (npy(np.array([{}], object)), 422, "no numeric array in it"),
    "strings": (npy(np.array(["a"])), 422, "expected an array of numbers"),
    "structs": (npy(np.zeros(3, "f4,i4")), 422, "expected an array of numbers"),
    "complex": (npy(np.zeros((8, 8), complex)), 422, "expected an array of numbers"),
    "half an npy": (npy(np.zeros((8, 8)))[:-1], 422, "takes 512 bytes, got 511"),
    "more than an npy": (npy(np.zeros((8, 8))) + b"x", 422, "takes 512 bytes, got 513"),
    "an npy of terabytes": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1, 8, 8)}"),
        422,
        "takes 256000000 bytes, got 0",
    ),
    "negative sizes": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -8)}") + bytes(32),
        422,
        "an array of the shape [-1, -8]",
    ),
    "no header": (npy_header("{'descr': __import__('os')}"), 422, "damaged .npy file"),
    "many axes": (
        npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {(1,) * 70}}}") + b"x",
        422,
        "the array has 70 axes",
    ),
    "a magic": (b"\x93NUMPY", 422, "damaged .npy file"),
    "a version": (b"\x93NUMPY\x09\x00" + bytes(50), 422, "damaged .npy file"),
    "nothing in it": (npy(np.zeros((0, 1, 8, 8))), 422, "is empty"),
    "other axes": (npy(np.zeros((2, 3, 8, 8))), 422, "expected images [N, 1, 8, 8]"),
    "nan": (npy(np.full((1, 1, 8, 8), np.nan)), 422, "must be finite"),
    "a range": (npy(np.full((1, 1, 8, 8), 7.0)), 422, "must be finite and in [-1, 1]"),
    "integers": (npy(np.zeros((1, 1, 8, 8), int)), 422, "expected uint8 (0-255) or floating"),
    "too many": (npy(np.zeros((9, 1, 8, 8))), 413, "at most 8 images"),
    "large pixels": (npy(np.zeros((201, 202), np.uint8)), 413, "pixels, got [201, 202]"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies(client, name):
    body, status, message = BODIES[name]
    refusal(client.post("/invert", content=body), status, message)
    if body:
        form = client.post("/invert", files={"images": ("é\n.bin", body)})
        refusal(form, status, message.removeprefix("the body: "))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"recipe": "lipton"}, "recipe must be one of quick, uneven, endless, default"),
        ({"recipie": "quick"}, "unknown parameter 'recipie'; expected recipe"),
        ({"recipe": ["quick", "uneven"]}, "recipe is given 2 times"),
        ({"loss": "perceptual"}, "perceptual"),
        ({"effort": "fast"}, "effort is for"),
        ({"effort": "huge", "recipe": "default"}, "effort"),
        ({"seed": "-1"}, "seed must be a whole number"),
        ({"seed": str(2**64)}, "seed must be a whole number"),
        ({"seed": "²"}, "seed must be a whole number"),
        ({"id": ["a", "b"]}, "give one id per image, got 2 for 1"),
        ({"id": str(2**47)}, "an id must be text"),
        ({"timeout": "31"}, "timeout must be a number of seconds > 0 and <= 30"),
        ({"timeout": "nan"}, "timeout must be a number"),
        ({"timeout": "0"}, "timeout must be a number"),
        ({"format": "png"}, "format must be one of json, npy"),
        ({"fit": "pad"}, "fit must be one of crop, stretch"),
        ({"conditions": "3"}, "this bundle takes no conditions"),
    ],
    ids=str,
)
def test_bad_parameters(client, query, message):
    refusal(client.post("/invert", params=query, content=GOOD), 400, message)


def test_bad_forms(client):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    start = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    whole = start + GOOD + b"\r\n--b--\r\n"
    assert client.post("/invert", content=whole, headers=kind).status_code == 200
    cases = [
        (whole[:-20], kind, 400, "ends before its last boundary"),
        (start, kind, 400, "ends before its last boundary"),
        (b"nothing", kind, 400, "malformed form"),
        (whole, {"Content-Type": "multipart/form-data"}, 400, "Missing boundary"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", kind, 400, "malformed form"),
        (whole.replace(b' name="images";', b""), kind, 400, "malformed form"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "multipart/form-data"),
        (b"--b--\r\n", kind, 400, "no image was sent"),
    ]
    for content, headers, status, message in cases:
        refusal(client.post("/invert", content=content, headers=headers), status, message)
    many = [("images", (f"{i}.png", GOOD)) for i in range(10)]
    refusal(client.post("/invert", files=many[:9]), 413, "at most 8 images")
    refusal(client.post("/invert", files=many), 413, "at most 8 images")
    fields = {f"f{i}": "x" for i in range(40)}
    refusal(client.post("/invert", files=many[:1], data=fields), 400, "Too many fields")
    odd = {"Content-Type": "multipart/form-data; boundary=b; charset=hex"}
    named = b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n' + whole
    assert client.post("/invert", content=named, headers=odd).status_code in (200, 400)


def test_bad_latents(client):
    cases = [
        (b"[", 422, "not valid JSON"),
        (b"[" * 100_000, 422, "not valid JSON"),
        (b"\xff", 422, "not valid JSON"),
        (b'{"z": [[1]]}', 422, 'expected {"latents"'),
        (b"[[1, 2], [3]]", 422, "latents must be float32 [N, 6]"),
        (b"[1, 2, 3, 4, 5, 6]", 422, "add a batch axis"),
        (b'[["a", 2, 3, 4, 5, 6]]', 422, "latents must be float32"),
        (b"[[NaN, 2, 3, 4, 5, 6]]", 422, "latents must be finite"),
        (b"null", 422, "latents must be float32"),
        (npy(np.zeros((9, 6))), 413, "at most 8 images"),
    ]
    for content, status, message in cases:
        refusal(client.post("/generate", content=content), status, message)
    form = {"files": [("a", ("a", b"[]")), ("b", ("b", b"[]"))]}
    refusal(client.post("/generate", **form), 400, "expected one file of latents")
    refusal(client.post("/evaluate", content=GOOD), 400, "no image was sent")


def test_what_is_served(client, inverter):
    digest = inverter.bundle.digest
    healthy = {"status": "ok", "bundle": digest, "version": pyinv.__version__}
    assert client.get("/healthz").json() == healthy
    assert f'bundle="{digest}"' in client.get("/metrics").text


def test_unknown_paths_and_methods(client):
    refusal(client.get("/inverse"), 404, "expected POST /invert")
    refusal(client.get("/invert"), 405, "Method Not Allowed: GET /invert")
    answer = client.post("/invert", content=GOOD, headers={"Accept": "image/webp"})
    refusal(answer, 406, "the answer is application/json or application/x-npy")


def test_a_queue_that_is_full(client, inverter, images):
    most = LANES + LIMITS.queue
    with ThreadPoolExecutor(most) as pool:
        query = {"recipe": "endless", "timeout": "3"}
        given = [
            pool.submit(client.post, "/invert", params=query, content=GOOD) for _ in range(most)
        ]
        wait_for(lambda: measured(client, "pyinv_queue") == LIMITS.queue)
        answer = client.post("/invert", content=GOOD)
        refusal(answer, 503, "the queue is full")
        assert int(answer.headers["retry-after"]) >= 1
        for future in given:
            refusal(future.result(), 504, "not found in time")
    wait_for(lambda: free(client))
    assert client.post("/invert", content=GOOD).status_code == 200


def test_bodies_in_memory_are_limited(inverter, monkeypatch):
    limits = Limits(max_body=50_000, max_held=60_000)
    with served(inverter, recipes=RECIPES, limits=limits) as client:
        address = ("127.0.0.1", client.base_url.port)
        with socket.create_connection(address) as slow:
            slow.sendall(b"POST /invert HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
            slow.sendall(bytes(40_000))
            wait_for(lambda: client.service._held == 40_000)
            refusal(client.post("/invert", content=bytes(30_000)), 503, "too many bodies")
        wait_for(lambda: client.service._held == 0)
        assert client.post("/invert", content=GOOD).status_code == 200


def test_other_streams_than_allowed(client):
    """A stream that is idle makes room for another; one that is in use does not."""
    for seed in range(2 * LIMITS.streams):
        assert client.post(f"/invert?seed={seed}", content=GOOD).status_code == 200
    assert measured(client, "pyinv_streams") == LIMITS.streams
    with ThreadPoolExecutor(LIMITS.streams) as pool:
        url = "/invert?recipe=endless&timeout=2&seed="
        given = [pool.submit(client.post, f"{url}{i}", content=GOOD) for i in range(LIMITS.streams)]
        wait_for(lambda: measured(client, "pyinv_lanes_active") == LIMITS.streams)
        refusal(client.post("/invert", content=GOOD), 503, "streams of other recipes")
        assert {future.result().status_code for future in given} == {504}
    assert client.post("/invert", content=GOOD).status_code == 200


# Ends


def test_a_timeout_frees_the_lanes(client):
    started = time.monotonic()
    answer = client.post("/invert?recipe=endless&timeout=0.3", content=npy(np.zeros((8, 1, 8, 8))))
    refusal(answer, 504, "not found in time")
    assert time.monotonic() - started < LONG / 2
    wait_for(lambda: free(client))


def test_clients_that_hang_up_free_the_lanes(client):
    address = ("127.0.0.1", client.base_url.port)
    head = f"POST /invert?recipe=endless HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n\r\n"
    connections = [socket.create_connection(address) for _ in range(LANES + 2)]
    for connection in connections:
        connection.sendall(head.encode() + GOOD)
    wait_for(lambda: measured(client, "pyinv_queue") == 2)
    assert measured(client, "pyinv_lanes_active") == LANES
    for connection in connections:
        connection.close()
    wait_for(lambda: free(client))
    text = client.get("/metrics").text
    assert re.search(r'pyinv_requests_total{code="499",endpoint="invert"} [1-9]', text)


def test_clients_that_hang_up_within_a_body(client):
    address = ("127.0.0.1", client.base_url.port)
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST /invert HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        wait_for(lambda: measured(client, "pyinv_requests_active") == 1)
    wait_for(lambda: free(client))


def test_slow_bodies_do_not_fill_the_queue(client):
    address = ("127.0.0.1", client.base_url.port)
    many = LANES + LIMITS.queue + 1
    slow = [socket.create_connection(address) for _ in range(many)]
    for connection in slow:
        connection.sendall(b"POST /invert HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    wait_for(lambda: measured(client, "pyinv_requests_active") == many)
    assert client.post("/invert", content=GOOD).status_code == 200
    for connection in slow:
        connection.close()
    wait_for(lambda: free(client))


def test_slow_bodies(client):
    address = ("127.0.0.1", client.base_url.port)
    head = b"POST /invert?timeout=0.3 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
    with socket.create_connection(address, timeout=LONG) as connection:
        connection.sendall(head)
        answer = connection.makefile("rb").read()  # the service closes the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within" in answer
    wait_for(lambda: free(client))


def test_a_failing_runtime(inverter, images, monkeypatch):
    """The requests that were under way fail, and the next get a new stream."""
    take = StreamRun.take
    broken = threading.Event()
    others = set(_open_runs)

    def failing(run):
        if broken.is_set() and run not in others:
            raise RunError("the device\nis gone")
        return take(run)

    monkeypatch.setattr(StreamRun, "take", failing)
    with served(inverter, recipes=RECIPES, limits=LIMITS) as client:
        with ThreadPoolExecutor(1) as pool:
            given = pool.submit(client.post, "/invert?recipe=endless", content=GOOD)
            wait_for(lambda: measured(client, "pyinv_lanes_active") == 1)
            broken.set()
            refusal(given.result(), 500, "the run failed: the device is gone")
        wait_for(lambda: measured(client, "pyinv_streams") == 0)
        broken.clear()
        assert measured(client, "pyinv_failures_total") == 2  # of quick, too
        answer = client.post("/invert", content=npy(images[:2]))
        assert_is(answer.json()["results"], inverter.invert(images[:2], recipe=QUICK))


def test_a_stream_that_is_stopped(inverter):
    """No answer is an unfinished latent."""
    with served(inverter, recipes=RECIPES, limits=LIMITS) as client, ThreadPoolExecutor(1) as pool:
        given = pool.submit(client.post, "/invert?recipe=endless", content=GOOD)
        wait_for(lambda: measured(client, "pyinv_lanes_active") == 1)
        for lanes in client.service._pool.open():
            lanes.close()
        refusal(given.result(), 500, "the stream was closed")
        assert client.post("/invert", content=GOOD).status_code == 200
        assert measured(client, "pyinv_failures_total") == 0


def test_draining(inverter, images):
    with served(inverter, recipes=RECIPES, limits=LIMITS) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.post, "/invert?recipe=endless&timeout=1.5", content=GOOD)
        wait_for(lambda: measured(client, "pyinv_lanes_active") == 1)
        client.server.drain()
        refusal(client.get("/readyz"), 503, "the service is draining")
        assert client.get("/healthz").status_code == 200
        answer = client.post("/invert", content=GOOD)
        refusal(answer, 503, "the service is draining")
        refusal(slow.result(), 504, "not found in time")
        client.thread.join(LONG)
        assert not client.thread.is_alive()
        with pytest.raises(httpx.ConnectError):
            client.get("/healthz")


def test_loading(inverter, monkeypatch):
    may_open = threading.Event()
    opened = Inverter._open_stream

    def late(*arguments, **named):
        assert may_open.wait(LONG)
        return opened(*arguments, **named)

    monkeypatch.setattr(Inverter, "_open_stream", late)
    timer = threading.Timer(LONG, may_open.set)
    app = create_app(inverter, recipes=(QUICK,))
    bound = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}") as client:
            refusal(client.get("/readyz"), 503, "the service is loading")
            refusal(client.post("/invert", content=GOOD), 503, "the service is loading")
            assert client.get("/healthz").status_code == 200
            may_open.set()
            wait_for(lambda: client.get("/readyz").status_code == 200)
            assert client.post("/invert", content=GOOD).status_code == 200
    finally:
        may_open.set()
        timer.cancel()
        server.drain()
        thread.join()


def test_bad_arguments(inverter, tmp_path):
    with pytest.raises(pyinv.InputError, match="given twice"):
        create_app(inverter, recipes=(QUICK, QUICK))
    with pytest.raises(pyinv.InputError, match="at least one recipe"):
        create_app(inverter, recipes=())
    with pytest.raises(pyinv.RuleError, match="unknown recipe"):
        create_app(inverter, recipes=("fastest",))
    with pytest.raises(pyinv.BundleError, match="normal equations"):
        create_app(inverter, recipes=("precise",))
    for name, value in (("timeout", 0), ("max_body", 0), ("queue", -1), ("streams", 1.5)):
        with pytest.raises(pyinv.InputError, match=name):
            Limits(**{name: value})
    write_tiny_bundle(tmp_path / "b", batch_norm="batch")
    with pytest.raises(pyinv.InputError, match="do not affect one another"):
        create_app(Inverter(tmp_path / "b"))
    with pytest.raises(pyinv.InputError, match=r"cannot listen on 203\.0\.113\.1"):
        listen("203.0.113.1", 0)


def test_answers_are_sent_without_delay():
    """An answer has two parts; the second would wait 40 ms for the client's acknowledgement."""
    with listen("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()):
        bound.setblocking(True)
        accepted, _ = bound.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Documentation


class Forms(HTMLParser):
    """Collects a page's forms: action, method, encoding, and the names of their fields."""

    def __init__(self):
        super().__init__()
        self.forms = []
        self.loads = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "form":
            self.forms.append((attributes, {}))
        if tag in ("input", "select"):
            self.forms[-1][1][attributes["name"]] = attributes.get("type", tag)
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(attributes)


def test_the_forms_of_the_page_work(client, inverter, images):
    """Sends each form as a browser does: empty fields as well."""
    page = client.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    parser = Forms()
    parser.feed(page.text)
    assert parser.loads == []
    assert f"@photo.png {client.base_url}/invert" in page.text
    assert "form-action 'self'" in page.headers["content-security-policy"]
    assert [form["action"] for form, _ in parser.forms] == [
        "invert",
        "encode",
        "generate",
        "evaluate",
    ]
    for form, fields in parser.forms:
        assert (form["method"], form["enctype"]) == ("post", "multipart/form-data")
        if form["action"] == "encode":
            continue
        files = {"images": ("a.png", png(images[0])), "latents": ("z.npy", npy(inverter.sample(1)))}
        answer = client.post(
            form["action"],
            data={name: "" for name, kind in fields.items() if kind != "file"},
            files={name: files[name] for name, kind in fields.items() if kind == "file"},
            headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"},
        )
        assert answer.status_code == 200, answer.text
    unfilled = client.post("/invert", data={"seed": ""}, files={"images": ("", b"")})
    assert unfilled.status_code == 400


def test_openapi(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) >= {"/invert", "/encode", "/generate", "/evaluate", "/readyz"}
    invert = described["paths"]["/invert"]["post"]
    names = [parameter["name"] for parameter in invert["parameters"]]
    assert names[:2] == ["recipe", "effort"]
    assert invert["parameters"][0]["schema"]["enum"] == ["quick", "uneven", "endless", "default"]
    assert "multipart/form-data" in invert["requestBody"]["content"]
    example = invert["responses"]["200"]["content"]["application/json"]["example"]
    answer = client.post("/invert", content=GOOD).json()
    assert list(example) == list(answer)
    assert list(example["results"][0]) == list(answer["results"][0])
