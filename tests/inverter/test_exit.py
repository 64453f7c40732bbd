"""Programs that end, or fork, while inversions are under way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyinv import Uniform
from support.backends import Backend
from support.tiny_bundle import write_tiny_bundle

START = """
import atexit, itertools, os, sys, threading, time
import pyinv
from pyinv.recipes import Recipe, Stage

inverter = pyinv.Inverter(sys.argv[1], runtime=sys.argv[2], threads=1)
latents = inverter.sample(40)
images = inverter.generate(latents)
short = Recipe("short", Stage(pyinv.Adam(0.01), max_steps=2))
endless = Recipe("endless", Stage(pyinv.Adam(1e-6), max_steps=10**8))
source = itertools.repeat(images[0])

def invert(recipe):
    while True:
        inverter.invert(images, recipe=recipe, progress=lambda progress: None)

def generate():
    while True:
        inverter.generate(latents)

def stream():
    for result in inverter.stream(source, recipe=short):
        pass

def start(work, *arguments):
    threading.Thread(target=work, args=arguments, daemon=True).start()
"""

ENDINGS = {
    "a run": "start(invert, endless)",
    "runs": "start(invert, short)",
    "functions": "start(generate)",
    "a stream": "start(stream)",
    "a stream that is not read": "stream = inverter.stream(source, recipe=short); next(stream)",
    "all of them": "[start(*each) for each in ((invert, endless), (invert, short), (generate,), "
    "(stream,), (stream,))]",
}


def run(bundle, runtime, program):
    return subprocess.run(
        [sys.executable, "-c", START + program, str(bundle), runtime],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def bundle(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / request.param
    if request.param == "onnx":
        write_tiny_bundle(path)
    else:
        if reason := Backend("torchscript", "cpu").missing:
            pytest.skip(reason)
        pytest.importorskip("torch")
        from pyinv.export import export
        from support.generators import Mlp, seeded

        options = {"latent_shape": (20,), "prior": Uniform(), "value_range": (0, 1)}
        only = {"losses": "mse", "normal_equations": False, "runtimes": ("torchscript",)}
        export(seeded(Mlp()), path, **options, **only)
    return path, request.param


@pytest.mark.parametrize("work", ENDINGS.values(), ids=ENDINGS)
def test_a_program_ends_while_threads_invert(bundle, work):
    for pause in (0.0, 0.02, 0.05):
        program = f"{work}\ntime.sleep({pause})\nprint('done')\nsys.exit(3)"
        done = run(*bundle, program)
        assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


FORK = """
opened = inverter.stream(source, recipe=short)
next(opened)
start(invert, endless)
time.sleep(0.05)
child = os.fork()
if not child:
    try:
        inverter.invert(images, recipe=short)
    except pyinv.RunError as error:
        print(error)
    try:
        for _ in range(1000):  # what had arrived before the fork
            next(opened)
    except pyinv.RunError as error:
        print(error)
    atexit._run_exitfuncs()
    print("child", flush=True)
    os._exit(4)  # as multiprocessing does: ONNX Runtime itself may wait for its parent's threads
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status), next(opened).status.name, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_neither_uses_nor_waits_for_the_work_of_its_parent(bundle):
    done = run(*bundle, "import warnings\nwarnings.simplefilter('ignore')\n" + FORK)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].startswith("this Inverter was opened before the process was forked")
    assert "was opened before the process was forked" in lines[1]
    assert lines[2:] == ["child", "4 STEP_LIMIT_IMPROVING"]
