"""A session: a bundle's functions, loaded by one runtime onto one device.

All calls to the engine go through it. It converts the engine's errors to pyinv's.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import _core, runtimes
from pyinv.batching import groups
from pyinv.bundle import Bundle, Function, Manifest
from pyinv.cancellation import check_stopped, stopped
from pyinv.devices import open_device, resolve_device
from pyinv.errors import BundleError, DeviceError, OutOfMemoryError, RunError, one_line
from pyinv.interrupts import deferred
from pyinv.recipes import Recipe
from pyinv.validation import shape_text

__all__ = ["Session"]

FloatArray = NDArray[np.float32]

# Memory for the Jacobians of one batch of normal equations. Larger batches are no faster on a CPU.
NORMAL_EQUATIONS_BYTES = {"cpu": 2**27, "cuda": 2**33}


class Session:
    """A bundle's functions on a device, loaded on first use and cached.

    Args:
        bundle: the bundle.
        runtime, device, threads, tf32: as for ``Inverter``, validated; "auto" is resolved here.

    Attributes:
        bundle: the bundle.
        manifest: the bundle's manifest.
        runtime: "onnx" or "torchscript".
        device: "cpu" or "cuda:0" and so on.
        threads: number of CPU threads.
        tf32: whether matrix products are rounded to TF32, which only a GPU does.

    Raises:
        BundleError: the bundle has no functions for the runtime.
        DependencyError: the runtime is missing, installed twice or incompatible.
        DeviceError: the device does not exist, or the runtime cannot use it.
    """

    def __init__(
        self, bundle: Bundle, *, runtime: str, device: str, threads: int, tf32: bool
    ) -> None:
        self.bundle = bundle
        self.threads = threads
        self._process = os.getpid()
        if runtime == "auto":
            runtime = self.manifest.runtimes[0]
        self.manifest.forward(runtime)
        self.runtime = runtime
        loaded = runtimes.load(runtime)
        self.device = resolve_device(device, runtime_has_cuda=loaded.has_cuda)
        if self.device != "cpu" and not loaded.has_cuda:
            package = "onnxruntime-gpu" if runtime == "onnx" else "a PyTorch with CUDA"
            raise DeviceError(
                f"{loaded} has no CUDA, got device={device!r}; install {package}, or use "
                'device="cpu"'
            )
        if runtime == "onnx" and self.device != "cpu":
            runtimes.preload_cuda()
        self.tf32 = tf32 and self.device != "cpu"
        # All functions share one device, and so one stream: they run in order.
        self._options = {"threads": threads, "device": open_device(self.device), "tf32": tf32}
        self.preconditioner = self.bundle.preconditioner()
        self._objectives: dict[Function, _core.Objective] = {}
        self._functions: dict[Function, Any] = {}

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def device_kind(self) -> str:
        """The device without its number: "cpu" or "cuda"."""
        return self.device.partition(":")[0]

    # Functions ------------------------------------------------------------------------------------

    def objective(self, function: Function) -> _core.Objective:
        """Load an objective or normal equations for the engine.

        Raises:
            BundleError: the file does not match the manifest.
            DeviceError: the function does not fit in the device's memory.
        """
        if function not in self._objectives:
            second_order = function.bytes_per_target is not None
            options: dict[str, Any] = {}
            if second_order:
                options["most_at_once"] = self.most_at_once(function)
            if function.runtime == "onnx":
                options["operators"] = function.operators
                options["input_operators"] = function.input_operators
            objective: _core.Objective = self._load("Objective", function, **options)
            path = self.bundle.file(function)
            sizes = (objective.latent_size, objective.image_size, objective.condition_size)
            manifest = self.manifest
            expected = (manifest.latent_size, manifest.target_size, manifest.condition_size)
            if sizes != expected:
                raise BundleError(
                    f"{path}: its latent, image and condition hold {sizes} "
                    f"numbers, but the manifest says {expected}; export the bundle again"
                )
            if objective.takes_weights != manifest.weights:
                raise BundleError(
                    f"{path}: takes {'' if objective.takes_weights else 'no '}weights, unlike the "
                    "manifest says; export the bundle again"
                )
            if objective.has_gram != second_order:
                raise BundleError(
                    f"{path}: has {'no' if second_order else 'a'} gram matrix, but the manifest "
                    f"says {function.name}; export the bundle again"
                )
            self._objectives[function] = objective
        return self._objectives[function]

    def function(self, function: Function) -> Any:
        """Load a function to call outside the engine; raises the same errors as ``objective``."""
        if function not in self._functions:
            self._functions[function] = self._load("Function", function)
        return self._functions[function]

    def most_at_once(self, function: Function) -> int:
        """Return the largest batch of normal equations that fits into the memory reserved."""
        assert function.bytes_per_target is not None
        return max(1, NORMAL_EQUATIONS_BYTES[self.device_kind] // function.bytes_per_target)

    # Calls ----------------------------------------------------------------------------------------

    def generate(self, latents: FloatArray, condition: FloatArray | None, size: int) -> FloatArray:
        """Return the images [n, *image_shape] of latents [n, d], in batches of at most ``size``."""
        images = np.empty((len(latents), *self.manifest.image_shape), dtype=np.float32)
        function = self.manifest.forward(self.runtime)
        for rows in groups(len(latents), size):
            images[rows] = self._call(function, rows, latent=latents, condition=condition)["image"]
        return images

    def observe(self, images: FloatArray, size: int) -> FloatArray:
        """Return the targets [n, *target_shape] of images, in batches of at most ``size``."""
        targets = np.empty((len(images), *self.manifest.target_shape), dtype=np.float32)
        function = self.manifest.observe(self.runtime)
        for rows in groups(len(images), size):
            targets[rows] = self._call(function, rows, image=images)["target"]
        return targets

    def encode(self, images: FloatArray, condition: FloatArray | None, size: int) -> FloatArray:
        """Return the encoder's latents [n, d] of images, in batches of at most ``size``."""
        latents = np.empty((len(images), self.manifest.latent_size), dtype=np.float32)
        function = self.manifest.encode(self.runtime)
        for rows in groups(len(images), size):
            latents[rows] = self._call(function, rows, image=images, condition=condition)["latent"]
        return latents

    def evaluate(
        self,
        function: Function,
        rows: slice,
        latents: FloatArray,
        images: FloatArray,
        condition: FloatArray | None,
        weights: FloatArray | None = None,
    ) -> dict[str, FloatArray]:
        """Evaluate an objective or normal equations on these rows.

        Args:
            weights: [n, pixels] or [1, pixels]; None for weights of 1.

        Raises:
            OutOfMemoryError: the rows do not fit in the device's memory.
            BundleError: the file does not match the manifest.
            RunError: the runtime failed.
        """
        full = None
        if self.manifest.weights:
            given = np.ones(images[:1].shape, dtype=np.float32) if weights is None else weights
            full = np.broadcast_to(given.reshape(-1, *images.shape[1:]), images.shape)
        return self._call(
            function, rows, latent=latents, image=images, condition=condition, weights=full
        )

    # Runs -----------------------------------------------------------------------------------------

    def plan(self, recipe: Recipe) -> tuple[str, list[Function]]:
        """Return the recipe as JSON for the engine, and the functions that it refers to by index.

        Raises:
            BundleError: the bundle has no function that the recipe needs.
        """
        described = recipe.describe()
        functions: list[Function] = []

        def number(function: Function) -> int:
            if function not in functions:
                functions.append(function)
            return functions.index(function)

        for stage, entry in zip(recipe.stages, described["stages"], strict=True):
            entry["objective"] = number(self.manifest.objective(stage.loss, self.runtime))
            if stage.solver.needs_normal_equations:
                function = self.manifest.normal_equations(stage.loss, self.runtime)
                entry["normal_equations"] = number(function)
        return json.dumps(described), functions

    def run(self, plan: tuple[str, Sequence[Function]], **arguments: Any) -> dict[str, Any]:
        """Run the engine on the output of ``plan``, with the arguments of ``_core.invert``.

        Returns:
            the results, by name.

        Raises:
            OutOfMemoryError: the batch does not fit in the device's memory.
            RunError: the runtime failed.
            Anything that ``progress`` raises. In all three cases the error's attribute ``partial``
            holds the results so far.
        """
        self._check_process()
        recipe, functions = plan
        objectives = [self.objective(function) for function in functions]
        # Ctrl-C ends the run, whenever it comes, and raises nothing.
        with deferred() as received, _translated():

            def ends() -> bool:
                return received() or stopped()

            found = _core.invert(
                objectives=objectives,
                recipe=recipe,
                prior=json.dumps(self.manifest.prior.describe()),
                preconditioner=self.preconditioner,
                interrupted=ends,
                **arguments,
            )
            found["cancelled"] = found["cancelled"] or received()
            return found

    def stream(self, plan: tuple[str, Sequence[Function]], **arguments: Any) -> StreamRun:
        """Start a run over targets that arrive one by one, with the arguments of ``_core.Stream``.

        Raises:
            BundleError: a file does not match the manifest.
            DeviceError: a function does not fit in the device's memory.
        """
        self._check_process()
        recipe, functions = plan
        objectives = [self.objective(function) for function in functions]
        with _translated():
            run = StreamRun(
                objectives=objectives,
                recipe=recipe,
                prior=json.dumps(self.manifest.prior.describe()),
                preconditioner=self.preconditioner,
                **arguments,
            )
        return run

    def _check_process(self) -> None:
        """Refuse to run in a process that was forked after this session was opened."""
        if os.getpid() != self._process:
            raise RunError(
                "this Inverter was opened before the process was forked, and its threads do not "
                "exist here; open an Inverter in the new process, or start processes with "
                'multiprocessing.get_context("spawn")'
            )

    def draw(self, seed: int, target_ids: NDArray[np.uint64], restart: int) -> FloatArray:
        """Return the prior's draws for these targets and this restart, [n, d]."""
        prior = json.dumps(self.manifest.prior.describe())
        return _core.draw_initial(prior, seed, target_ids, restart, self.manifest.latent_size)

    def _call(
        self, function: Function, rows: slice, **inputs: FloatArray | None
    ) -> dict[str, FloatArray]:
        """Run a function on these rows; return its outputs, of the shapes that they should have."""
        self._check_process()
        check_stopped()
        feeds = {name: values[rows] for name, values in inputs.items() if values is not None}
        loaded = self.function(function)
        count = len(next(iter(feeds.values())))
        short = f"{self.device} has no memory for {count} images at a time"
        try:
            with _translated(short, "give a smaller batch_size"):
                found: dict[str, FloatArray] = loaded.run(feeds, interrupted=stopped)
        except _core.Cancelled:
            check_stopped()
            raise
        except ValueError as error:  # the file's sizes are not the manifest's
            raise BundleError(f"{one_line(error)}; export the bundle again") from None
        for name, row_shape in self._outputs(function).items():
            values = found.get(name)
            # NumPy would broadcast most other shapes without a word.
            if values is None or values.shape != (count, *row_shape):
                got = "nothing" if values is None else f"[{shape_text(values.shape)}]"
                raise BundleError(
                    f"{self.bundle.file(function)}: should give {name} "
                    f"[{shape_text((count, *row_shape))}], gave {got}; export the bundle again"
                )
        return found

    def _outputs(self, function: Function) -> dict[str, tuple[int, ...]]:
        """Return the outputs of a function, and the shape of one target's row of each."""
        size = self.manifest.latent_size
        derivatives: dict[str, tuple[int, ...]] = {"loss": (), "gradient": (size,)}
        outputs: dict[str, dict[str, tuple[int, ...]]] = {
            "forward": {"image": self.manifest.image_shape},
            "observe": {"target": self.manifest.target_shape},
            "encode": {"latent": (size,)},
            "objective": derivatives,
            "normal_equations": {**derivatives, "gram": (size, size)},
        }
        return outputs[function.name]

    def _load(self, kind: str, function: Function, **options: Any) -> Any:
        """Load a function as the runtime's "Objective" or "Function"."""
        path = self.bundle.file(function)
        if self.runtime == "onnx":
            name = "ONNX Runtime"
            digests = {file: record.sha256 for file, record in self.manifest.files.items()}
            make = partial(getattr(_core, f"Onnx{kind}"), str(path), files=digests)
        else:
            from pyinv import _torch

            name = "TorchScript"
            make = partial(getattr(_torch, f"Torch{kind}"), str(path), function.method)
        short = f"{path}: {self.device} has no memory for it"
        try:
            with _translated(short, 'free some, or use device="cpu"'):
                return make(**self._options, **options)
        except RunError as error:
            raise BundleError(
                f"{path}: {name} cannot load it ({error}); export the bundle again"
            ) from None


class StreamRun:
    """A run of the engine over targets that arrive one by one, see ``_core.Stream``."""

    def __init__(self, **arguments: Any) -> None:
        self._run = _core.Stream(**arguments)
        _open_runs.add(self)

    def put(self, **targets: Any) -> int:
        """Pass targets to the run; return how many of them it took, 0 if none within 50 ms."""
        return self._run.put(**targets)

    def end(self) -> None:
        """Say that there are no more targets."""
        self._run.end()

    def cancel(self, numbers: Sequence[int]) -> None:
        """Cancel targets within a step; ``take`` returns them with the status ``CANCELLED``.

        Args:
            numbers: of the targets, from 0 in the order of ``put``. Those of targets that have
                finished are ignored.
        """
        self._run.cancel(list(numbers))

    def take(self) -> dict[str, Any] | None:
        """Return finished targets, possibly none within 50 ms; None at the end.

        Raises:
            OutOfMemoryError: the batch does not fit in the device's memory.
            RunError: the runtime failed.
        """
        with _translated():
            return self._run.take()

    def stop(self) -> None:
        """End the run within a step. Finished targets can still be taken."""
        self._run.stop()


_open_runs: weakref.WeakSet[StreamRun] = weakref.WeakSet()


@atexit.register
def _stop_runs() -> None:
    """End the runs of streams that are still open, before the interpreter goes."""
    for run in list(_open_runs):
        run.stop()


@contextlib.contextmanager
def _translated(short: str = "", remedy: str = "") -> Iterator[None]:
    """Convert the engine's errors to pyinv's, preserving the attribute ``partial``.

    Args:
        short: message when out of memory; the engine's own message follows in brackets.
        remedy: what to do when out of memory.
    """
    try:
        yield
    except _core.DeviceError as error:
        raise DeviceError(one_line(error)) from None
    except _core.OutOfMemory as error:
        text = f"{short} ({one_line(error)}); {remedy}" if short else one_line(error)
        raise _with_partial(OutOfMemoryError(text), error) from None
    except _core.RunFailed as error:
        raise _with_partial(RunError(one_line(error)), error) from None
    except _core.Cancelled:
        raise
    except RuntimeError as error:
        if hasattr(error, "partial"):  # raised by the progress function
            raise
        raise RunError(one_line(error)) from None


def _with_partial(translated: Exception, error: Exception) -> Exception:
    translated.partial = getattr(error, "partial", None)  # type: ignore[attr-defined]
    return translated
