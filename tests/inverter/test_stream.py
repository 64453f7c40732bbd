"""Streams of targets: what they yield, in what order, and how they end."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pyinv
from pyinv import InputError, RunError, Status
from pyinv.images import save_images
from pyinv.inverter import Inverter
from pyinv.priors import Normal
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import LBFGS, Adam, GradientDescent
from support.tiny_bundle import write_tiny_bundle

QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))
# Ends at very different times.
UNEVEN = Recipe("uneven", Stage(LBFGS(), max_steps=300, loss_tolerance=1e-7), restarts=3)
ENDLESS = Recipe("endless", Stage(Adam(1e-6), max_steps=10**8))
# Of the bundle's own values, not of the machine's speed: no test may take this long.
LONG = 30.0


@pytest.fixture(scope="module")
def inverter(bundle_path):
    return Inverter(bundle_path, threads=1, batch_size=4)


@pytest.fixture(scope="module")
def images(inverter):
    return inverter.generate(inverter.sample(40, seed=3))


def threads_of_streams():
    return [thread for thread in threading.enumerate() if thread.name.startswith("pyinv-")]


def wait_for(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def draw(inverter, number, shape):
    """The latent that the target with this number starts from."""
    ids = np.array([number], dtype=np.uint64)
    return inverter._session.draw(0, ids, 0).reshape(shape)


def assert_same(results, found):
    """The results, sorted by number, are those of ``invert``."""
    results = sorted(results, key=lambda result: result.number)
    assert [result.number for result in results] == list(range(len(found)))
    for result, latent in zip(results, found.latents, strict=True):
        np.testing.assert_allclose(result.latent, latent, atol=1e-4)
    assert [result.status for result in results] == list(found.status)
    for name in ("steps", "attempts", "normal_equations"):
        assert [getattr(result, name) for result in results] == list(getattr(found, name))
    np.testing.assert_allclose([result.loss for result in results], found.loss, rtol=1e-3)
    np.testing.assert_allclose([result.psnr for result in results], found.psnr, rtol=1e-3)


# What it yields


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("recipe", [QUICK, UNEVEN, "default"], ids=["quick", "uneven", "default"])
def test_a_stream_gives_what_invert_gives(inverter, images, recipe, ordered):
    found = inverter.invert(images, recipe=recipe, seed=5)
    results = list(inverter.stream(images, recipe=recipe, seed=5, ordered=ordered))
    assert_same(results, found)
    numbers = [result.number for result in results]
    if ordered:
        assert numbers == sorted(numbers)
    elif recipe is UNEVEN:
        assert numbers != sorted(numbers)


def test_normal_equations_in_a_stream(tmp_path):
    write_tiny_bundle(tmp_path / "b", prior=Normal(), losses=("mse",), normal_equations=("mse",))
    inverter = Inverter(tmp_path / "b", threads=1, batch_size=3)
    images = inverter.generate(inverter.sample(7))
    recipe = Recipe(
        "solve", (Stage(Adam(0.05), max_steps=5), Stage(pyinv.LevenbergMarquardt(), max_steps=30))
    )
    results = list(inverter.stream(images, recipe=recipe))
    assert_same(results, inverter.invert(images, recipe=recipe))
    assert all(result.normal_equations > 0 for result in results)


def test_targets_of_every_form(inverter, images, tmp_path):
    (tmp_path / "photos").mkdir()
    save_images(images[:3], tmp_path / "photos", (-1, 1))
    read = pyinv.load_images(tmp_path / "photos", inverter.manifest)
    np.save(tmp_path / "array.npy", images[3:5])
    data = io.BytesIO()
    Image.open(tmp_path / "photos" / "0.png").save(data, "png")
    sources = {
        "one image": (images[0], [0], images[:1]),
        "a batch": (images[:3], [0, 1, 2], images[:3]),
        "a pair": (("x", images[0]), ["x"], images[:1]),
        "ids of a batch": ((["a", 7], images[:2]), ["a", 7], images[:2]),
        "a dictionary": ({"image": images[0], "id": "y"}, ["y"], images[:1]),
        "a file": (tmp_path / "photos" / "1.png", [str(tmp_path / "photos" / "1.png")], read[1:2]),
        "a folder": (
            str(tmp_path / "photos"),
            [str(tmp_path / "photos" / f"{i}.png") for i in range(3)],
            read,
        ),
        "an array file": (
            tmp_path / "array.npy",
            [f"{tmp_path / 'array.npy'}[{i}]" for i in range(2)],
            images[3:5],
        ),
        "bytes": (("z", data.getvalue()), ["z"], read[:1]),
        "an open file": (io.BytesIO(data.getvalue()), [0], read[:1]),
    }
    for name, (item, ids, expected) in sources.items():
        results = list(inverter.stream([item], recipe=QUICK, ordered=True))
        assert [result.id for result in results] == ids, name
        given = not isinstance(item, str | Path)  # the ids; those of files are their paths
        draws = [pyinv.target_id(id_) if given else row for row, id_ in enumerate(ids)]
        found = inverter.invert(expected, recipe=QUICK, target_ids=draws)
        assert_same(results, found)
    path = next(iter(inverter.stream(tmp_path / "photos" / "0.png", recipe=QUICK)))
    assert path.id == str(tmp_path / "photos" / "0.png")


def test_ids_seed_the_draws(inverter, images):
    ids = [9, 2**47 - 1, 3]
    found = inverter.invert(images[:3], recipe=QUICK, target_ids=ids)
    results = list(inverter.stream(zip(ids, images[:3], strict=True), recipe=QUICK, ordered=True))
    assert [result.id for result in results] == ids
    assert_same(results, found)


def test_conditions(tmp_path):
    write_tiny_bundle(tmp_path / "b", condition_size=2)
    inverter = Inverter(tmp_path / "b", threads=1, batch_size=2)
    given = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    images = inverter.generate(inverter.sample(5), conditions=given)
    items = [
        {"image": image, "conditions": c[None]} for image, c in zip(images, given, strict=True)
    ]
    results = list(inverter.stream(items, recipe=QUICK))
    assert_same(results, inverter.invert(images, recipe=QUICK, conditions=given))
    (without,) = inverter.stream(images[:1])
    assert (without.status, without.reason[:28]) == (Status.INVALID, "this bundle needs conditions")


def test_weights(tmp_path):
    pytest.importorskip("torch", reason="exports a bundle")
    pytest.importorskip("onnxscript", reason="exports a bundle")
    from pyinv.export import export
    from support.generators import Mlp, seeded

    options = {"latent_shape": (20,), "prior": pyinv.Uniform(), "value_range": (0, 1)}
    only = {"losses": "mse", "normal_equations": False, "weights": True}
    export(seeded(Mlp()), tmp_path / "b", **options, **only)
    inverter = Inverter(tmp_path / "b", threads=1, batch_size=2)
    images = inverter.generate(inverter.sample(5))
    masks = np.random.default_rng(0).random((5, *images.shape[1:])) < 0.5
    masks[3] = True
    items: list = [{"image": images[0], "weights": masks[0]}]
    items += [{"image": images[1:3], "weights": masks[1:3]}, images[3]]
    items += [{"image": images[4], "weights": masks[4]}]
    results = list(inverter.stream(items, recipe=QUICK))
    assert_same(results, inverter.invert(images, recipe=QUICK, weights=masks))
    nothing = {"image": images[0], "weights": np.zeros(images.shape[1:])}
    (refused,) = inverter.stream([nothing])
    assert "weights must have a positive sum" in refused.reason


def test_the_source_may_wait_for_the_results(inverter, images):
    """A target is worked on at once, also while the source has no other yet."""
    arrived = threading.Semaphore(0)

    def one_by_one():
        for image in images[:3]:
            yield image
            assert arrived.acquire(timeout=LONG)

    for _ in inverter.stream(one_by_one(), recipe=QUICK):
        arrived.release()


def test_memory_is_bounded(inverter, images):
    """The source is not read much further than its results are taken."""
    read = itertools.count()

    def endless():
        for image in itertools.cycle(images):
            next(read)
            yield image

    stream = inverter.stream(endless(), recipe=QUICK, window=8, workers=1)
    for _ in range(10):
        next(stream)
    time.sleep(0.3)  # enough to read hundreds of images
    # The window and the lanes, the queue of decoded items, and what the threads hold.
    assert next(read) <= 10 + 8 + 2 * 4 + 4 + 8
    stream.close()


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_bounds_what_is_ahead(inverter, images, window):
    results = inverter.stream(images, recipe=UNEVEN, ordered=True, window=window)
    assert [result.number for result in results] == list(range(len(images)))


def test_no_targets(inverter):
    assert list(inverter.stream([])) == []


# Bad targets


def test_bad_targets_harm_no_other(inverter, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")

    def source():
        yield images[0]
        yield images[0, :, :3]
        yield tmp_path / "missing.png"
        yield tmp_path / "broken.png"
        yield np.full_like(images[0], np.nan)
        yield 5 * images[0]
        yield {"picture": images[0]}
        yield (1, images[0], 3)
        yield (["a"], images[:2])
        yield images[1]
        raise OSError("the disk is gone")

    results = list(inverter.stream(source(), recipe=QUICK, ordered=True))
    invalid = [result for result in results if result.status == Status.INVALID]
    assert [result.number for result in invalid] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    messages = [
        "images must be float32",
        "missing.png: no such file",
        "broken.png: ",
        "images must be finite",
        "images must be in",
        "a target may have image, id, conditions, weights, got picture",
        "a target is an image or a pair",
        "a batch of 2 images needs as many ids",
        "the source failed: OSError: the disk is gone",
    ]
    for result, message in zip(invalid, messages, strict=True):
        assert message in result.reason
        assert np.isnan(result.latent).all()
        assert "\n" not in result.reason
    good = [result for result in results if result.status != Status.INVALID]
    found = inverter.invert(images[:2], recipe=QUICK, target_ids=[0, 9])
    np.testing.assert_allclose([result.latent for result in good], found.latents, atol=1e-4)


def test_a_bad_image_in_a_batch_harms_no_other(inverter, images):
    batch = images[:4].copy()
    batch[2, 0, 0, 0] = np.nan
    items = [(["a", "b", "c", "d"], batch), (["e", -1], images[4:6])]
    results = list(inverter.stream(items, recipe=QUICK, ordered=True))
    assert [result.id for result in results] == ["a", "b", "c", "d", "e", -1]
    reasons = [result.reason for result in results]
    assert reasons[:2] + reasons[3:5] == [""] * 4
    assert "images must be finite" in reasons[2]
    assert "an id must be text, bytes or a whole number" in reasons[5]
    draws = [pyinv.target_id(id_) for id_ in "abde"]
    found = inverter.invert(images[[0, 1, 3, 4]], recipe=QUICK, target_ids=draws)
    good = [result.latent for result in results if not result.reason]
    np.testing.assert_allclose(good, found.latents, atol=1e-4)


def test_ids():
    assert pyinv.target_id(7) == pyinv.target_id(np.uint32(7)) == 7
    # Fixed for ever: a job that is resumed by another version draws the same numbers.
    assert pyinv.target_id("photos/1.png") == 5258929537503
    assert pyinv.target_id("é") == pyinv.target_id("é".encode())
    ids = {pyinv.target_id(str(number)) for number in range(1000)}
    assert len(ids) == 1000
    assert max(ids) < 2**47
    for wrong in (-1, 2**47, True, 1.0, None, ("a",)):
        with pytest.raises(InputError, match="an id must be text, bytes or a whole number"):
            pyinv.target_id(wrong)


def test_an_image_may_be_a_function(inverter, images):
    def fails():
        raise OSError("no such image")

    source = [{"id": row, "image": lambda row=row: images[row]} for row in range(4)]
    results = list(inverter.stream([*source, ("bad", fails)], recipe=QUICK, ordered=True))
    assert_same(results[:4], inverter.invert(images[:4], recipe=QUICK))
    assert (results[4].id, results[4].status) == ("bad", Status.INVALID)
    assert results[4].reason == "OSError: no such image"


def test_a_bad_target_may_raise(inverter, images):
    stream = inverter.stream([images[0], images[0, 0]], recipe=QUICK, on_error="raise")
    with pytest.raises(InputError, match="images must be float32"):
        list(stream)


def test_a_source_that_only_fails_ends(inverter):
    class Broken:
        def __iter__(self):
            return self

        def __next__(self):
            raise OSError("no")

    results = list(inverter.stream(Broken(), recipe=QUICK))
    assert {result.reason for result in results} == {"the source failed: OSError: no"}


def test_a_failing_runtime_ends_the_stream(inverter, images, monkeypatch):
    def take(run):
        raise RunError("the runtime failed")

    monkeypatch.setattr("pyinv.session.StreamRun.take", take)
    with pytest.raises(RunError, match="the runtime failed"):
        list(inverter.stream(images, recipe=QUICK))
    wait_for(lambda: not threads_of_streams())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 3}, "source must be an iterable of images"),
        ({"source": b"png"}, "source must be an iterable of images"),
        ({"ordered": 1}, "ordered must be True or False"),
        ({"window": 0}, "window must be"),
        ({"workers": 0}, "workers must be"),
        ({"seed": -1}, "seed must be"),
        ({"on_error": "skip"}, 'on_error must be "result" or "raise"'),
        ({"fit": "pad"}, "fit must be"),
        ({"init": "zero"}, 'init must be "encoder" or None'),
        ({"noise": 0.1}, "noise is for recipe"),
        ({"effort": "fast", "recipe": "adam"}, "effort is for"),
    ],
    ids=str,
)
def test_bad_arguments(inverter, arguments, message):
    with pytest.raises(pyinv.PyinvError, match=message):
        inverter.stream(**{"source": [], **arguments})
    assert threads_of_streams() == []


def test_targets_that_affect_one_another_are_refused(tmp_path):
    write_tiny_bundle(tmp_path / "b", batch_norm="batch")
    with pytest.raises(InputError, match="do not affect one another"):
        Inverter(tmp_path / "b").stream([])


# Cancelling one target, which the service does


def stream_of(inverter, recipe, rows=64):
    """An open run of the engine, as in the service."""
    session = inverter._session
    plan = session.plan(recipe.fit(inverter.manifest.prior))
    return session.stream(plan, seed=0, lanes=4, rows=rows)


def put(run, images, numbers):
    ids = np.array(numbers, dtype=np.uint64)
    assert run.put(images=images[numbers].reshape(len(numbers), -1), ids=ids) == len(numbers)


def taken(run, count):
    """The results of this many targets, by number."""
    results: dict[int, tuple] = {}
    end = time.monotonic() + LONG
    while len(results) < count and time.monotonic() < end:
        found = run.take()
        rows = zip(found["status"].tolist(), found["latents"], strict=True)
        results |= dict(zip(found["numbers"].tolist(), rows, strict=True))
    return results


def test_a_cancelled_target_frees_its_lane(inverter, images):
    # The targets that are not cancelled end, those of black and white squares never do.
    recipe = Recipe("some", replace(ENDLESS.stages[0], loss_tolerance=1e-3))
    shape = inverter.manifest.latent_shape
    own = inverter.generate(np.stack([draw(inverter, number, shape) for number in range(12)]))
    source = -own
    source[[8, 9, 11]] = own[[8, 9, 11]]
    run = stream_of(inverter, recipe)
    put(run, source, list(range(12)))
    time.sleep(0.1)  # the first four are in the lanes
    run.cancel([0, 1, 2, 3, 4, 5, 6, 7])
    found = taken(run, 11)
    assert sorted(found) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    for number, (status, latent) in found.items():
        cancelled = number < 8
        assert (status == Status.CANCELLED) == cancelled == bool(np.isnan(latent).all())
    run.cancel([8, 10, 100])  # finished, in a lane, unknown
    assert set(taken(run, 1)) == {10}
    run.end()
    wait_for(lambda: run.take() is None)


def test_a_cancellation_changes_no_other_result(inverter, images):
    found = inverter.invert(images, recipe=UNEVEN)
    run = stream_of(inverter, UNEVEN)
    put(run, images, list(range(40)))
    run.cancel([3, 5])
    time.sleep(0.02)
    run.cancel([17, 39])
    run.end()
    results = taken(run, 40)
    assert sorted(results) == list(range(40))
    others = [number for number in range(40) if results[number][0] != Status.CANCELLED]
    assert len(others) >= 36
    for number in others:
        np.testing.assert_allclose(results[number][1], found.latents[number].ravel(), atol=1e-4)


# Ends


def test_a_source_may_reuse_its_array(inverter, images):
    def source():
        array = np.empty_like(images[0])
        for array[...] in images:
            yield array

    expected = inverter.invert(images, recipe=QUICK)
    for result in inverter.stream(source(), recipe=QUICK):
        np.testing.assert_allclose(result.latent, expected.latents[result.number], atol=1e-4)


def test_a_fast_source_is_not_read_ahead(inverter, images):
    read = []

    def source():
        for number in range(1000):
            read.append(number)
            yield {"image": decode}

    def decode():
        time.sleep(0.001)
        return images[:4]

    found = inverter.stream(source(), recipe=QUICK, window=16)
    next(found)
    assert len(read) < 100
    found.close()


def test_closing_ends_it_at_once(inverter, images):
    found = inverter.stream(itertools.cycle(images), recipe=QUICK)
    next(found)
    found.close()
    wait_for(lambda: not threads_of_streams())


def test_closing_while_all_lanes_are_busy(inverter, images):
    started = threading.Event()

    def source():
        yield images[0, :1, :2]  # invalid, so that there is a result
        yield from images[:6]
        started.set()
        yield from images[6:]

    found = inverter.stream(source(), recipe=ENDLESS)
    next(found)
    assert started.wait(LONG)
    found.close()
    wait_for(lambda: not threads_of_streams())


def test_closing_does_not_wait_for_the_source(inverter, images):
    release = threading.Event()

    def source():
        yield images[0]
        release.wait()

    found = inverter.stream(source(), recipe=QUICK)
    next(found)
    found.close()
    release.set()
    wait_for(lambda: not threads_of_streams())


def test_closing_does_not_wait_for_a_decoding_thread(inverter, images):
    stuck, goes_on = threading.Event(), threading.Event()

    def image():
        stuck.set()
        assert goes_on.wait(LONG)
        return images[1]

    stream = inverter.stream([images[0], image], recipe=QUICK)
    assert next(stream).number == 0
    assert stuck.wait(LONG)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < LONG / 2
    goes_on.set()
    wait_for(lambda: not threads_of_streams())


class Refusing(dict):
    """A target that fails wherever it is looked at."""

    def get(self, *arguments):
        raise ValueError("no")


def leave():
    raise SystemExit


@pytest.mark.parametrize(
    "items", [lambda: leave(), Refusing(image=0)], ids=["exit in the source", "an odd target"]
)
def test_whatever_the_source_raises_ends_the_stream(inverter, images, items):
    def source():
        yield images[0]
        yield items() if callable(items) else items

    stream = inverter.stream(source(), recipe=QUICK)
    with pytest.raises(RunError, match=r"the stream failed: (SystemExit|ValueError)"):
        list(stream)
    wait_for(lambda: not threads_of_streams())


def test_an_exception_in_the_consumer_ends_it(inverter, images):
    def consume():
        for _ in inverter.stream(itertools.cycle(images), recipe=QUICK):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    wait_for(lambda: not threads_of_streams())


@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
@pytest.mark.parametrize("ordered", [False, True])
def test_an_interrupt_loses_nothing_that_finished(inverter, images, ordered):
    # A target's own image at once, the others never.
    recipe = Recipe("some", replace(ENDLESS.stages[0], loss_tolerance=1e-3))
    lanes = 4
    exact = inverter.manifest.latent_shape
    own = inverter.generate(np.stack([draw(inverter, number, exact) for number in range(8)]))
    source = [own[0], -own[1], own[2], -own[3], own[4], own[5]]
    expected = [0, 2, 4, 5]
    assert len(source) - len(expected) < lanes
    finished: list[int] = []
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    stream = inverter.stream(source, recipe=recipe, ordered=ordered)
    with pytest.raises(KeyboardInterrupt):  # extend() keeps what came before it
        finished.extend(result.number for result in stream)
    timer.join()
    assert sorted(finished) == expected
    wait_for(lambda: not threads_of_streams())


@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
def test_an_interrupt_loses_no_result_that_comes_with_it(inverter, images):
    run = inverter._open_stream(inverter._stream_plan(QUICK), seed=0, rows=1)

    def interrupt():  # while take() waits
        os.kill(os.getpid(), signal.SIGINT)
        run.put(images=images[:1].reshape(1, -1), ids=np.zeros(1, dtype=np.uint64))

    timer = threading.Timer(0.01, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        wait_for(lambda: len(run.take()["numbers"]))
    timer.join()
    wait_for(lambda: len(run.take()["numbers"]))
    run.stop()


def test_streams_in_several_threads(inverter, images):
    found = inverter.invert(images, recipe=QUICK)
    outputs: dict[int, list] = {}

    def consume(number):
        outputs[number] = list(inverter.stream(images, recipe=QUICK))

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert_same(outputs[number], found)


PROGRAM = """
import itertools, sys, pyinv
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam
inverter = pyinv.Inverter(sys.argv[1], threads=1)
image = inverter.generate(inverter.sample(1))[0]
stream = inverter.stream(itertools.repeat(image), recipe=Recipe("r", Stage(Adam(0.1), max_steps=5)))
next(stream)
print("done")
sys.exit(3)
"""


def test_a_program_may_end_while_a_stream_is_open(bundle_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


def in_a_fork(inverter, connection):
    try:
        inverter.invert(np.zeros((1, 1, 8, 8), np.float32), recipe=QUICK)
        connection.send("inverted")
    except RunError as error:
        connection.send(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_inverter_of_another_process_is_refused(inverter):
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=in_a_fork, args=(inverter, theirs))
    process.start()
    assert ours.poll(LONG)
    assert "opened before the process was forked" in ours.recv()
    process.join()


def test_gradient_descent_stops_a_stream_at_values_that_are_not_finite(inverter, images):
    wild = Recipe("wild", Stage(GradientDescent(1e38), max_steps=50))
    statuses = {result.status for result in inverter.stream(images[:4], recipe=wild)}
    assert statuses <= set(Status) - {Status.CANCELLED, Status.INVALID}
