"""The inverter: a bundle, an engine, and the calls that people make."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import _core, recipes, runtimes
from pyinv.arrays import as_numpy, check_rows, noise_level, whole_number
from pyinv.bundle import RUNTIMES, Bundle, Function, Manifest
from pyinv.cores import usable_cores
from pyinv.devices import open_device, resolve_device
from pyinv.errors import BundleError, DeviceError, InputError, PyinvError, RuleError, RunError
from pyinv.images import check_images
from pyinv.priors import Uniform
from pyinv.progress import progress_reporter
from pyinv.recipes import MAX_RESTARTS, Recipe, Stage
from pyinv.result import Inversion, Status
from pyinv.solvers import LBFGS, GradientDescent, LevenbergMarquardt
from pyinv.uncertainty import (
    FLOAT32_ROUNDING,
    TF32_ROUNDING,
    Uncertainty,
    laplace_uncertainty,
    widened,
)

__all__ = ["Inverter"]

FloatArray = NDArray[np.float32]
Progress = Callable[[dict[str, Any]], None]

DEFAULT_LANES = 64
AUTO_LANES = {"cpu": (8, 16, 32, 64, 128), "cuda": (64, 256, 1024, 4096, 16384)}

# Memory for the Jacobians of the targets whose normal equations are evaluated at a time. On the
# CPU they gain nothing from larger batches than this holds.
NORMAL_EQUATIONS_BYTES = {"cpu": 2**27, "cuda": 2**33}
# Memory for one copy of their matrices in double, of which uncertainty needs a few.
MATRIX_BYTES = 2**26

# Uncertainty looks for other optima by so many hops. Their shares of a draw go from one with which
# most find their way where an image leaves little open, to a whole draw, which knows nothing of the
# latent given. They are made for some targets at a time: enough to keep the lanes busy, as far as
# this memory holds copies of the images.
DEFAULT_HOPS = 8
HOP_SHARES = (0.5, 1.0)
HOP_BYTES = 2**28

# The engine's counters hold 48 bits of target id. ``sample`` draws from the upper half and
# ``invert`` from the lower, or inverting G(sample(n, seed)) with that seed would begin at the
# answer.
MAX_TARGET_IDS = 2**47


class Inverter:
    """Inverts images against one exported generator.

    Args:
        bundle: a bundle's folder, or an open ``Bundle``.
        runtime: what runs the bundle's functions: "onnx" or "torchscript", if the bundle has it;
            "auto" is the first that the bundle has. TorchScript needs PyTorch.
        device: "cpu"; "cuda", which is "cuda:0"; another GPU as "cuda:1"; or "auto", the first GPU
            if there is one and the runtime can use it, else the CPU.
        lanes: targets that run side by side, at least 1; never more than there are targets. More
            lanes use more memory and, up to a point, make better use of the device. "auto" times
            the engine at 8, 16, 32, 64 and 128 lanes before the first run (about as long as 16
            steps of 64), on a GPU at 64, 256, 1,024 and so on to 16,384, as far as memory and
            targets go, and takes the fewest lanes within 5 % of the best speed.
            The normal equations of ``LevenbergMarquardt`` take far more memory a lane than a loss;
            they are evaluated for as many lanes at a time as 128 MiB hold (8 GiB on a GPU), by the
            bundle's own figure.
            Results don't depend on lanes, except to rounding, unless targets are coupled (bundles
            with ``batch_norm="batch"``, ``MomentPenalty(over="batch")``): there they are the group
            size, and "auto" is 64.
        threads: CPU threads, at least 1. None takes every physical core this process may use. Give
            fewer where other programs keep cores busy: threads that wait for a core slow all down.
        tf32: let a GPU round the inputs of its matrix products and convolutions to TF32's 10 bits
            of mantissa: faster, with relative errors near 1e-3 in place of 1e-6. No effect on the
            CPU.

    Attributes:
        runtime: the runtime in use, "onnx" or "torchscript".
        device: the device in use, "cpu" or "cuda:0" and so on.

    Raises:
        BundleError: the bundle is missing or damaged, or lacks the runtime asked for.
        DependencyError: the runtime is missing, doubled or does not fit; the message has the
            command that mends it.
        DeviceError: the device is not there, or the runtime cannot use it.
        InputError: another argument is out of range.

    Examples:
        >>> inverter = pyinv.Inverter("faces.bundle")               # doctest: +SKIP
        >>> inversion = inverter.invert(images, restarts=2)         # doctest: +SKIP
        >>> inversion.latents.shape                                 # doctest: +SKIP
        (256, 100)
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        *,
        runtime: str = "auto",
        device: str = "cpu",
        lanes: int | str = DEFAULT_LANES,
        threads: int | None = None,
        tf32: bool = False,
    ) -> None:
        if runtime not in ("auto", *RUNTIMES):
            raise InputError(
                f'runtime must be "auto", "onnx" or "torchscript", got {runtime!r}; '
                "`pyinv info BUNDLE` lists a bundle's"
            )
        if not isinstance(tf32, bool):
            raise InputError(f"tf32 must be True or False, got {tf32!r}")
        # A wrong name or a missing GPU is told before the bundle is read.
        resolve_device(device, runtime_has_cuda=False)
        if lanes != "auto":
            lanes = whole_number("lanes", lanes, at_least=1, or_else='"auto"')
        self._lanes = lanes
        self.threads = (
            usable_cores() if threads is None else whole_number("threads", threads, at_least=1)
        )
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.runtime = self._choose(runtime)
        loaded = runtimes.load(self.runtime)
        self.device = resolve_device(device, runtime_has_cuda=loaded.has_cuda)
        if self.device != "cpu" and not loaded.has_cuda:
            wanted = "onnxruntime-gpu" if self.runtime == "onnx" else "a PyTorch with CUDA"
            raise DeviceError(
                f"{loaded} has no CUDA, got device={device!r}; install {wanted}, or use "
                'device="cpu"'
            )
        if self.runtime == "onnx" and self.device != "cpu":
            runtimes.preload_cuda()
        # One for all, and so one stream: what the objectives and functions do is done in order.
        self._options = {
            "threads": self.threads,
            "device": open_device(self.device),
            "tf32": tf32,
        }
        self._tf32 = tf32
        self._objectives: dict[Function, _core.Objective] = {}
        self._functions: dict[Function, Any] = {}

    @property
    def lanes(self) -> int | str:
        """The lanes asked for, or "auto"."""
        return self._lanes

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself: shapes, value range, prior, losses."""
        return self.bundle.manifest

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"<Inverter of {manifest.name or self.bundle.path.name}: "
            f"latent {list(manifest.latent_shape)}, {manifest.prior}, "
            f"image {list(manifest.image_shape)}, losses {', '.join(manifest.losses)}; "
            f"{self.runtime} on {self.device}, {self._lanes} lanes, {self.threads} threads>"
        )

    def invert(
        self,
        images: Any,
        *,
        recipe: str | Recipe = "default",
        restarts: int | None = None,
        seed: int = 0,
        init: Any = None,
        condition: Any = None,
        target_ids: Any = None,
        trace_every: int = 0,
        truth: Any = None,
        uncertainty: bool = False,
        noise: float | None = None,
        progress: bool | Progress | None = None,
    ) -> Inversion:
        """Find the latents behind images.

        Args:
            images: the targets, [N, C, H, W] floats in the bundle's value range, N >= 1: NumPy,
                PyTorch (CPU) or anything with DLPack. Not copied when C-contiguous float32.
            recipe: a name in ``pyinv.recipes.RECIPES`` or a ``Recipe``. "precise" and
                "reconstruct" need a bundle with normal equations, but for "reconstruct" from an
                encoder.
            restarts: attempts after the first for targets that have not converged; None takes the
                recipe's. It needs a recipe with a loss tolerance to mean anything but "always".
            seed: 0 to 2^64 - 1. All draws depend on it and on the target's id alone.
            init: first latents, [N, *latent_shape] or [N, d]; or "encoder": what the bundle's
                encoder makes of the images. None leaves it to the recipe's ``start``. Restarts
                draw, or hop, in any case.
            condition: [N, k], for bundles that have a condition.
            target_ids: N whole numbers below 2^47 that random draws depend on; 0 to N - 1 by
                default. To split a job over calls or machines, give each part its rows' numbers.
            trace_every: record the loss every so many updates; 0 for no trace. Takes N * (1 +
                max_steps // trace_every) floats.
            truth: the latents that made the images, [N, *latent_shape] or [N, d], where they are
                known: to be told how near each target came to its own at any update, in the
                Inversion's ``nearest``. Changes nothing else.
            uncertainty: also tell how far each latent may be from the true one, in the Inversion's
                ``standard_error``, ``condition_number``, ``identifiable`` and ``noise``; see the
                method ``uncertainty``. The bundle must hold the normal equations of "mse". Targets
                that have not converged are searched for other optima, which takes about as long as
                "reconstruct". A run that is ended early leaves them NaN, and ``identifiable``
                False, where they were not reached.
            noise: for ``uncertainty`` and the recipe "reconstruct": the standard deviation of the
                noise on a pixel, where it is known, the same for all images. A Recipe object is
                taken as it is.
            progress: True for a bar on standard error, or a function that gets a dict at most ten
                times a second: "finished" and "targets" count targets, "active" the lanes at work,
                "evaluations" those of the objective so far, one a target and step, and those of
                normal equations; "mean_loss" is that of the lanes. The search of ``uncertainty``
                follows as a run of its own, whose targets are its hops.

        Returns:
            the Inversion. After Ctrl-C it comes within a step's time, with what was found so far
            and ``cancelled=True``.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            RuleError: an unknown recipe, or rules that do not fit the bundle's prior.
            BundleError: the bundle has no objective for a loss of the recipe, no normal equations
                where they are needed, or no encoder to start from.
            DeviceError: the GPU's memory does not hold the lanes; the message says how many fit.
            RunError: the runtime failed in the middle; what was found is in the error's attribute
                ``inversion``. What a progress function raises gets that attribute as well.
        """
        manifest = self.manifest
        if not isinstance(uncertainty, bool):
            raise InputError(f"uncertainty must be True or False, got {uncertainty!r}")
        noise = noise_level(noise)
        if noise is not None and not uncertainty and recipe != "reconstruct":
            raise InputError(
                'noise is for uncertainty=True and for recipe="reconstruct"; leave it out, or ask '
                "for one of them. A Recipe has its own: pyinv.recipes.reconstruct(manifest, noise)"
            )
        start = None
        if isinstance(init, str):
            if init != "encoder":
                raise InputError(f'init must be latents or "encoder", got {init!r}')
            init, start = None, init
        recipe = self._resolve(recipe, restarts, noise, start)
        encodes = recipe.start == "encoder" and init is None
        described, functions = self._plan(recipe)
        if encodes:
            self._function(manifest.encode(self.runtime))  # what is wrong with it comes first
        if uncertainty:
            self._check_uncertainty(noise)
        targets = check_images(images, manifest)
        count = len(targets)
        conditions = self._condition(condition, count)
        initial = None if init is None else check_rows(init, "init", manifest.latent_shape, count)
        known = None if truth is None else check_rows(truth, "truth", manifest.latent_shape, count)
        ids = _check_target_ids(target_ids, count)
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        trace_every = whole_number("trace_every", trace_every, at_least=0)
        coupled = manifest.batch_norm == "batch" or recipe.couples

        lanes = self._lanes_for(recipe, count, coupled)
        if manifest.batch_norm == "batch" and min(_group_sizes(count, lanes)) < 2:
            raise InputError(
                f"this bundle takes batch-norm statistics over the batch and needs groups of 2 or "
                f"more targets, got {count} target{'' if count == 1 else 's'} on {lanes} "
                f"lane{'' if lanes == 1 else 's'}; give more, or export with "
                'batch_norm="eval"'
            )
        measured = Uncertainty.unknown(count, manifest.latent_shape) if uncertainty else None
        if encodes:
            initial = self._encode(targets, conditions, lanes)

        def inversion_of(found: dict[str, Any]) -> Inversion:
            latents = found["latents"]
            return Inversion(
                latents=latents.reshape(count, *manifest.latent_shape),
                loss=found["loss"],
                status=found["status"],
                steps=found["steps"],
                attempts=found["attempts"],
                normal_equations=found["normal_equations"],
                seed=seed,
                recipe=recipe.describe(),
                cancelled=found["cancelled"],
                trace=found["trace"],
                nearest=found["nearest"],
                **({} if measured is None else vars(measured)),
                _images=lambda: self._generate(latents, conditions, lanes),
            )

        with progress_reporter(progress, count, recipe.max_steps) as report:
            try:
                found = self._run(
                    functions,
                    described,
                    images=targets.reshape(count, -1),
                    initial=initial,
                    condition=conditions,
                    truth=known,
                    target_ids=ids,
                    seed=seed,
                    lanes=lanes,
                    coupled=coupled,
                    trace_every=trace_every,
                    progress=report,
                )
            except (_core.OutOfMemory, _core.RunFailed) as error:
                inversion = inversion_of(error.partial)
                done = count - inversion.counts()["cancelled"]
                short = isinstance(error, _core.OutOfMemory)
                failure = self._too_many(lanes, recipe) if short else error
                if short and not done:
                    raise failure from None
                raise RunError(
                    f"{_one_line(failure)}; {done} of {count} targets were done before", inversion
                ) from None
            except Exception as error:  # of the progress function
                if hasattr(error, "partial"):
                    error.inversion = inversion_of(error.partial)  # type: ignore[attr-defined]
                raise
        inversion = inversion_of(found)
        if measured is None or inversion.cancelled:
            return inversion
        try:
            losses = self._measure(measured, found["latents"], targets, conditions, noise, None)
            # A latent that makes the image exactly leaves nothing to look for.
            rows = np.flatnonzero(found["status"] != Status.CONVERGED)
            self._widen(
                measured,
                rows,
                found["latents"],
                losses,
                targets,
                conditions,
                ids,
                noise=noise,
                hops=DEFAULT_HOPS,
                seed=seed,
                progress=progress,
            )
        except KeyboardInterrupt:
            return replace(inversion, cancelled=True)
        except (PyinvError, MemoryError) as error:
            done = int(np.isfinite(measured.noise).sum())
            raise RunError(
                f"{_one_line(error)}; every target was inverted, and the uncertainty of {done} of "
                f"{count} is known",
                inversion,
            ) from None
        except Exception as error:  # of the progress function
            error.inversion = inversion  # type: ignore[attr-defined]
            raise
        return inversion

    def generate(
        self, latents: Any, *, condition: Any = None, batch: int | None = None
    ) -> FloatArray:
        """Return the images of latents, G(z).

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1.
            condition: [N, k], for bundles that have a condition.
            batch: the most images made at a time, at least 1; None takes the lanes. With
                ``batch_norm="batch"`` the images of a batch depend on one another; batches are as
                equal as possible.

        Returns:
            float32 [N, C, H, W] in the bundle's value range.

        Raises:
            InputError: an argument of the wrong shape, type or range.
        """
        flat = check_rows(latents, "latents", self.manifest.latent_shape, None)
        conditions = self._condition(condition, len(flat))
        return self._generate(flat, conditions, self._batch(batch))

    def encode(self, images: Any, *, condition: Any = None, batch: int | None = None) -> FloatArray:
        """Return what the bundle's encoder makes of images: one forward pass, no search.

        Args:
            images: [N, C, H, W], as for ``invert``.
            condition: [N, k], for bundles that have a condition.
            batch: the most images encoded at a time, at least 1; None takes the lanes.

        Returns:
            latents, float32 [N, *latent_shape]. They are approximate;
            ``invert(images, init="encoder")`` starts from them and refines them.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no encoder; the message says how to get one.
        """
        manifest = self.manifest
        manifest.encode(self.runtime)
        targets = check_images(images, manifest)
        conditions = self._condition(condition, len(targets))
        flat = self._encode(targets, conditions, self._batch(batch))
        return flat.reshape(len(flat), *manifest.latent_shape)

    def evaluate(
        self,
        latents: Any,
        images: Any,
        *,
        loss: str = "mse",
        condition: Any = None,
        batch: int | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Return the loss between G(latents) and images, and its gradient.

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1.
            images: [N, C, H, W], as for ``invert``.
            loss: one of the bundle's losses, a mean over pixels.
            condition: [N, k], for bundles that have a condition.
            batch: the most images evaluated at a time, at least 1; see ``generate``.

        Returns:
            (loss [N], gradient [N, *latent_shape]), float32. A row's gradient is that of its own
            loss; with ``batch_norm="batch"``, that of its batch's summed loss.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no such loss.
        """
        manifest = self.manifest
        function = manifest.objective(loss, self.runtime)
        targets = check_images(images, manifest)
        flat = check_rows(latents, "latents", manifest.latent_shape, len(targets))
        conditions = self._condition(condition, len(flat))
        losses = np.empty(len(flat), dtype=np.float32)
        gradients = np.empty_like(flat)
        for rows in _groups(len(flat), self._batch(batch)):
            found = self._evaluate(function, rows, flat, targets, conditions)
            losses[rows], gradients[rows] = found["loss"], found["gradient"]
        return losses, gradients.reshape(len(flat), *manifest.latent_shape)

    def normal_equations(
        self,
        latents: Any,
        images: Any,
        *,
        loss: str = "mse",
        condition: Any = None,
        batch: int | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        r"""Return the loss between G(latents) and images, its gradient, and its gram matrix.

        For the loss's residual r over P pixels and its Jacobian J at the latent: the loss is
        $\frac{1}{P} \lVert r \rVert^2$, the gradient $\frac{2}{P} J^T r$, and the gram
        matrix $\frac{2}{P} J^T J$. So a Gauss-Newton step solves gram · step = -gradient.

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1.
            images: [N, C, H, W], as for ``invert``.
            loss: one of the bundle's losses with normal equations: "mse" or "whitened".
            condition: [N, k], for bundles that have a condition.
            batch: the most images evaluated at a time, at least 1; None takes the lanes, or fewer
                where 128 MiB (8 GiB on a GPU) do not hold their Jacobians.

        Returns:
            (loss [N], gradient [N, *latent_shape], gram [N, d, d]), float32.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no normal equations of this loss.
            DeviceError: the GPU's memory does not hold the batch.
        """
        manifest = self.manifest
        function = manifest.normal_equations(loss, self.runtime)
        targets = check_images(images, manifest)
        flat = check_rows(latents, "latents", manifest.latent_shape, len(targets))
        conditions = self._condition(condition, len(flat))
        count, size = flat.shape
        losses = np.empty(count, dtype=np.float32)
        gradients = np.empty_like(flat)
        grams = np.empty((count, size, size), dtype=np.float32)
        for rows in _groups(count, self._batch(batch, function)):
            found = self._evaluate(function, rows, flat, targets, conditions)
            losses[rows], gradients[rows] = found["loss"], found["gradient"]
            grams[rows] = found["gram"]
        return losses, gradients.reshape(count, *manifest.latent_shape), grams

    def uncertainty(
        self,
        latents: Any,
        images: Any,
        *,
        noise: float | None = None,
        hops: int = DEFAULT_HOPS,
        seed: int = 0,
        condition: Any = None,
        batch: int | None = None,
        progress: bool | Progress | None = None,
    ) -> Uncertainty:
        """Return how far the latents behind images may be from those that were found.

        From what the image leaves open near the latent, and from other optima of the posterior
        that hops lead to and that agree with the image as well. docs/uncertainty.md has the method,
        and when its intervals can be trusted.

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1: what ``invert`` found.
            images: [N, C, H, W], what it found them for.
            noise: the standard deviation of the noise on a pixel, in the bundle's value range,
                above 0; None estimates each image's from what G(latent) leaves of it. That takes
                more pixels than the latent has components.
            hops: searches for other optima from each latent, 0 to 4095. Each costs about as much as
                one of the recipe "reconstruct". 0: none, which takes one evaluation of the normal
                equations a target and knows nothing of other latents that make the same image.
            seed: 0 to 2^64 - 1, of the hops.
            condition: [N, k], for bundles that have a condition.
            batch: the most images taken at a time, at least 1; None takes the lanes, or fewer where
                128 MiB (8 GiB on a GPU) do not hold their Jacobians. Hops take the lanes.
            progress: for the hops, as for ``invert``; each counts as a target.

        Returns:
            the Uncertainty: standard errors, condition numbers, which latents the images determine,
            and the noise.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no normal equations of "mse".
            DeviceError: the GPU's memory does not hold a single image's Jacobian, or not the batch.
            RunError: the runtime failed in the middle.
        """
        noise = noise_level(noise)
        hops = whole_number("hops", hops, at_least=0, at_most=MAX_RESTARTS)
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        self._check_uncertainty(noise)
        manifest = self.manifest
        targets = check_images(images, manifest)
        flat = check_rows(latents, "latents", manifest.latent_shape, len(targets))
        conditions = self._condition(condition, len(flat))
        measured = Uncertainty.unknown(len(flat), manifest.latent_shape)
        losses = self._measure(measured, flat, targets, conditions, noise, batch)
        rows = np.arange(len(flat))
        self._widen(
            measured,
            rows,
            flat,
            losses,
            targets,
            conditions,
            rows.astype(np.uint64),
            noise=noise,
            hops=hops,
            seed=seed,
            progress=progress,
        )
        return measured

    def sample(self, n: int, *, seed: int = 0) -> FloatArray:
        """Return n latents drawn from the prior, float32 [n, *latent_shape].

        Args:
            n: how many, at least 1. The first latents are the same for every n.
            seed: 0 to 2^64 - 1. The draws are others than those of ``invert`` with this seed.

        Raises:
            InputError: an argument out of range.
        """
        n = whole_number("n", n, at_least=1)
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        ids = np.arange(n, dtype=np.uint64) + np.uint64(MAX_TARGET_IDS)
        prior = json.dumps(self.manifest.prior.describe())
        latents: FloatArray = _core.draw_initial(prior, seed, ids, 0, self.manifest.latent_size)
        return latents.reshape(n, *self.manifest.latent_shape)

    def _resolve(
        self,
        recipe: str | Recipe,
        restarts: int | None,
        noise: float | None,
        start: str | None = None,
    ) -> Recipe:
        manifest = self.manifest
        if recipe == "reconstruct":
            recipe = recipes.reconstruct(manifest, noise, start=start or "mean")
        elif isinstance(recipe, str):
            recipe = recipes.get(recipe, manifest, start=start)
        elif not isinstance(recipe, Recipe):
            raise InputError(
                "recipe must be a name or a pyinv.Recipe, got "
                f"{type(recipe).__name__}; the names are {', '.join(recipes.RECIPES)}"
            )
        for stage in recipe.stages:
            if not isinstance(stage.solver, LevenbergMarquardt | LBFGS):
                continue
            needs = (
                f"recipe {recipe.name}: {type(stage.solver).__name__} needs targets that do not "
                "affect one another, and "
            )
            if recipe.couples:
                raise RuleError(
                    f'{needs}MomentPenalty(over="batch") ties them together; give it over="latent"'
                )
            if manifest.batch_norm == "batch":
                raise BundleError(
                    f"{needs}this bundle takes batch-norm statistics over the batch; export it "
                    'again with batch_norm="eval", or choose a recipe of first order'
                )
        recipe = recipe.fit(manifest.prior)
        if start is not None:
            recipe = recipe.replace(start=start)
        return recipe if restarts is None else recipe.replace(restarts=restarts)

    def _plan(self, recipe: Recipe) -> tuple[dict[str, Any], list[Function]]:
        """Return the recipe for the engine, and the functions that its stages name by number."""
        described = recipe.describe()
        functions: list[Function] = []

        def number(function: Function) -> int:
            if function not in functions:
                functions.append(function)
            return functions.index(function)

        for stage, entry in zip(recipe.stages, described["stages"], strict=True):
            entry["objective"] = number(self.manifest.objective(stage.loss, self.runtime))
            if _is_second_order(stage):
                function = self.manifest.normal_equations(stage.loss, self.runtime)
                entry["normal_equations"] = number(function)
        return described, functions

    def _check_uncertainty(self, noise: float | None) -> None:
        """Raise what can be known before any work to prevent an uncertainty."""
        manifest = self.manifest
        for function in (manifest.objective, manifest.normal_equations):
            self._objective(function("mse", self.runtime))
        if noise is None and manifest.pixels <= manifest.latent_size:
            raise InputError(
                f"noise must be given: {manifest.pixels} pixels are too few to estimate it beside "
                f"{manifest.latent_size} latent components"
            )

    def _choose(self, runtime: str) -> str:
        """Return the runtime to use; "auto" is the bundle's first."""
        present = self.manifest.runtimes
        if runtime == "auto":
            return present[0]
        self.manifest.forward(runtime)
        return runtime

    def _run(
        self, functions: Sequence[Function], described: dict[str, Any], **arguments: Any
    ) -> Any:
        """Run the engine on these functions, by whose numbers the stages name them."""
        return _core.invert(
            objectives=[self._objective(function) for function in functions],
            recipe=json.dumps(described),
            prior=json.dumps(self.manifest.prior.describe()),
            **arguments,
        )

    def _objective(self, function: Function) -> _core.Objective:
        if function not in self._objectives:
            second_order = function.bytes_per_target is not None
            limit = {"most_at_once": self._most_at_once(function)} if second_order else {}
            objective: _core.Objective = self._load("Objective", function, **limit)
            path = self.bundle.file(function)
            sizes = (objective.latent_size, objective.image_size, objective.condition_size)
            manifest = self.manifest
            expected = (manifest.latent_size, manifest.pixels, manifest.condition_size)
            if sizes != expected:
                raise BundleError(
                    f"{path}: its latent, image and condition hold {sizes} "
                    f"numbers, but the manifest says {expected}; export the bundle again"
                )
            if objective.has_gram != second_order:
                raise BundleError(
                    f"{path}: {'lacks' if second_order else 'has'} a gram matrix, but the manifest "
                    f"says {function.name}; export the bundle again"
                )
            self._objectives[function] = objective
        return self._objectives[function]

    def _function(self, function: Function) -> Any:
        if function not in self._functions:
            self._functions[function] = self._load("Function", function)
        return self._functions[function]

    def _load(self, kind: str, function: Function, **options: Any) -> Any:
        """Return an "Objective" or "Function" of the runtime in use."""
        path = self.bundle.file(function)
        if self.runtime == "onnx":
            name = "ONNX Runtime"
            make = partial(getattr(_core, f"Onnx{kind}"), str(path))
        else:
            from pyinv import _torch

            name = "TorchScript"
            make = partial(getattr(_torch, f"Torch{kind}"), str(path), function.method)
        try:
            return make(**self._options, **options)
        except _core.DeviceError as error:
            raise DeviceError(_one_line(error)) from None
        except _core.OutOfMemory as error:
            raise DeviceError(
                f"{path}: {self.device} has no memory for it ({_one_line(error)}); "
                'free some, or use device="cpu"'
            ) from None
        except RuntimeError as error:
            raise BundleError(
                f"{path}: {name} cannot load it ({_one_line(error)}); export the bundle again"
            ) from None

    def _call(self, function: Any, feeds: dict[str, FloatArray]) -> dict[str, FloatArray]:
        try:
            found: dict[str, FloatArray] = function.run(feeds)
        except _core.OutOfMemory as error:
            count = len(next(iter(feeds.values())))
            raise DeviceError(
                f"{self.device} has no memory for {count} images at a time "
                f"({_one_line(error)}); give a smaller batch"
            ) from None
        except ValueError as error:  # the file's sizes are not the manifest's
            raise BundleError(f"{_one_line(error)}; export the bundle again") from None
        except RuntimeError as error:
            raise RunError(_one_line(error)) from None
        return found

    def _evaluate(
        self,
        function: Function,
        rows: slice,
        flat: FloatArray,
        targets: FloatArray,
        conditions: FloatArray | None,
    ) -> dict[str, FloatArray]:
        """Return what an objective or normal equations give for these rows."""
        feeds = {"latent": flat[rows], "image": targets[rows]}
        if conditions is not None:
            feeds["condition"] = conditions[rows]
        return self._call(self._function(function), feeds)

    def _measure(
        self,
        measured: Uncertainty,
        flat: FloatArray,
        targets: FloatArray,
        conditions: FloatArray | None,
        noise: float | FloatArray | None,
        batch: int | None,
        about: FloatArray | None = None,
    ) -> FloatArray:
        """Fill in the uncertainty by each latent's own optimum, some rows at a time.

        Returns:
            the latents' mean squared errors.
        """
        manifest = self.manifest
        function = manifest.normal_equations("mse", self.runtime)
        most = self._batch(batch, function)
        if batch is None:
            most = min(most, max(1, MATRIX_BYTES // (8 * manifest.latent_size**2)))
        tf32 = self._tf32 and self.device != "cpu"
        losses = np.empty(len(flat), dtype=np.float32)
        start = 0
        while start < len(flat):
            rows = slice(start, start + most)
            try:
                found = self._evaluate(function, rows, flat, targets, conditions)
                generated = None
                if noise is None:
                    some = None if conditions is None else conditions[rows]
                    generated = self._generate(flat[rows], some, most)
            except DeviceError:
                if batch is not None or most == 1:
                    raise
                most //= 2
                continue
            part = laplace_uncertainty(
                flat[rows],
                targets[rows],
                generated,
                found["gradient"],
                found["gram"],
                prior=manifest.prior,
                value_range=manifest.value_range,
                noise=noise[rows] if isinstance(noise, np.ndarray) else noise,
                about=None if about is None else about[rows],
                rounding=TF32_ROUNDING if tf32 else FLOAT32_ROUNDING,
            )
            measured.put(rows, part)
            losses[rows] = found["loss"]
            start += most
        return losses

    def _widen(
        self,
        measured: Uncertainty,
        rows: NDArray[np.intp],
        flat: FloatArray,
        losses: FloatArray,
        targets: FloatArray,
        conditions: FloatArray | None,
        ids: NDArray[np.uint64],
        *,
        noise: float | None,
        hops: int,
        seed: int,
        progress: bool | Progress | None,
    ) -> None:
        """Hop from these rows' latents, and take other optima into the uncertainty about them.

        Rows that were not reached, if it ends early, are left unknown.
        """
        rows = rows[np.isfinite(measured.noise[rows])]
        if not hops or not len(rows):
            return
        manifest = self.manifest
        stage = recipes.reconstruct(manifest, noise).stages[-1]
        recipe = Recipe("hops", (stage,), keep="last").fit(manifest.prior)
        described, functions = self._plan(recipe)
        total = hops * len(rows)
        lanes = min(self._batch(None), total)
        most = max(1, min(16 * lanes, HOP_BYTES // (4 * manifest.pixels)) // hops)
        done = 0

        def hop(some: NDArray[np.intp], report: Progress | None) -> Uncertainty:
            def for_each(values: NDArray[Any]) -> NDArray[Any]:
                return np.repeat(values[some], hops, axis=0)

            def offset(now: dict[str, Any]) -> None:
                assert report is not None
                before = done * hops
                report(now | {"finished": before + now["finished"], "targets": total})

            images = for_each(targets)
            given = None if conditions is None else for_each(conditions)
            found = self._run(
                functions,
                described,
                images=images.reshape(len(images), -1),
                initial=self._hops_from(flat[some], ids[some], hops, seed),
                condition=given,
                target_ids=for_each(ids),
                seed=seed,
                lanes=lanes,
                progress=None if report is None else offset,
            )
            if found["cancelled"]:
                raise KeyboardInterrupt
            others = found["latents"]
            there = Uncertainty.unknown(len(others), manifest.latent_shape)
            known, about = for_each(measured.noise), for_each(flat)
            misfits = self._measure(there, others, images, given, known, None, about)
            shape = len(some), hops
            return widened(
                measured.take(some),
                flat[some],
                losses[some],
                others.reshape(*shape, -1),
                misfits.reshape(shape),
                there.standard_error.reshape(*shape, -1),
                pixels=manifest.pixels,
                prior=manifest.prior,
            )

        try:
            with progress_reporter(progress, total, recipe.max_steps, unit="hops") as report:
                while done < len(rows):
                    some = rows[done : done + most]
                    try:
                        measured.put(some, hop(some, report))
                    except _core.OutOfMemory:
                        if lanes == 1:
                            raise
                        lanes //= 2
                        continue
                    done += len(some)
        except (_core.OutOfMemory, _core.RunFailed) as error:
            raise RunError(_one_line(error)) from None
        finally:
            left = rows[done:]
            measured.put(left, Uncertainty.unknown(len(left), manifest.latent_shape))

    def _hops_from(
        self, latents: FloatArray, ids: NDArray[np.uint64], hops: int, seed: int
    ) -> FloatArray:
        """Return where hops from latents [n, d] begin, [n * hops, d]."""
        manifest = self.manifest
        prior, mean = manifest.prior, np.float32(manifest.prior.mean)
        rule = json.dumps(prior.describe())
        starts = np.empty((len(latents), hops, manifest.latent_size), dtype=np.float32)
        for k, share in enumerate(np.linspace(*HOP_SHARES, hops, dtype=np.float32)):
            # Counted from the end: the recipe's own restarts are counted from the start.
            draws = _core.draw_initial(rule, seed, ids, MAX_RESTARTS - k, manifest.latent_size)
            stay = 1 - share if isinstance(prior, Uniform) else np.sqrt(1 - share**2)
            starts[:, k] = mean + (stay * (latents - mean) + share * (draws - mean))
        return starts.reshape(-1, manifest.latent_size)

    def _generate(self, flat: FloatArray, condition: FloatArray | None, batch: int) -> FloatArray:
        images = np.empty((len(flat), *self.manifest.image_shape), dtype=np.float32)
        function = self._function(self.manifest.forward(self.runtime))
        for rows in _groups(len(flat), batch):
            feeds = {"latent": flat[rows]}
            if condition is not None:
                feeds["condition"] = condition[rows]
            images[rows] = self._call(function, feeds)["image"]
        return images

    def _encode(self, targets: FloatArray, condition: FloatArray | None, batch: int) -> FloatArray:
        latents = np.empty((len(targets), self.manifest.latent_size), dtype=np.float32)
        encode = self.manifest.encode(self.runtime)
        function = self._function(encode)
        for rows in _groups(len(targets), batch):
            feeds = {"image": targets[rows]}
            if condition is not None:
                feeds["condition"] = condition[rows]
            found = self._call(function, feeds).get("latent")
            if found is None or found.shape != latents[rows].shape:
                got = "nothing" if found is None else str(list(found.shape))
                raise BundleError(
                    f"{self.bundle.file(encode)}: should give latents "
                    f"{list(latents[rows].shape)}, gave {got}; export the bundle again"
                )
            latents[rows] = found
        return latents

    def _condition(self, condition: Any, count: int) -> FloatArray | None:
        shape = self.manifest.condition_shape
        if shape is None:
            if condition is not None:
                raise InputError("this bundle takes no condition, got one; leave it out")
            return None
        if condition is None:
            raise InputError(
                f"this bundle needs a condition for every target, got none; "
                f"give condition=float32 [{count}, {shape[0]}]"
            )
        return check_rows(condition, "condition", shape, count)

    def _batch(self, batch: int | None, function: Function | None = None) -> int:
        """Return the most rows at a time: as asked for, or the lanes, as far as memory goes."""
        if batch is not None:
            return whole_number("batch", batch, at_least=1)
        lanes = DEFAULT_LANES if self._lanes == "auto" else int(self._lanes)
        return lanes if function is None else min(lanes, self._most_at_once(function))

    def _most_at_once(self, function: Function) -> int:
        """Return how many targets' normal equations the memory set aside for them holds."""
        assert function.bytes_per_target is not None
        kind = self.device.partition(":")[0]
        return max(1, NORMAL_EQUATIONS_BYTES[kind] // function.bytes_per_target)

    def _lanes_for(self, recipe: Recipe, count: int, coupled: bool) -> int:
        if self._lanes == "auto":
            if coupled:
                return min(DEFAULT_LANES, count)
            kind = self.device.partition(":")[0]
            # More lanes than targets would stand empty; a call with more targets tries again.
            candidates = sorted({min(lanes, count) for lanes in AUTO_LANES[kind]})
            lanes = self._fastest_lanes(recipe.stages[0].loss, candidates)
            # A lane also holds a gram matrix, which matters to a GPU's memory and not to speed.
            if kind != "cpu" and any(map(_is_second_order, recipe.stages)):
                while self._trial(_short(recipe), lanes) is None:
                    if lanes == 1:
                        raise self._too_many(lanes, recipe)
                    lanes //= 2
            if count >= max(AUTO_LANES[kind]):
                self._lanes = lanes
            return lanes
        return min(int(self._lanes), count)

    def _fastest_lanes(self, loss: str, candidates: Sequence[int]) -> int:
        """Return the fewest lanes within 5 % of the best images per second."""
        speeds: dict[int, float] = {}
        recipe = Recipe("trial", (Stage(GradientDescent(1e-6), max_steps=1, loss=loss),))
        for lanes in candidates:
            self._trial(recipe, lanes)  # the first run at a size plans its memory
            seconds = self._trial(recipe, lanes)
            if seconds is None:  # and so it is with more lanes
                break
            speeds[lanes] = lanes / seconds
        if not speeds:
            raise self._too_many(lanes, recipe)
        best = max(speeds.values())
        return next(lanes for lanes, speed in speeds.items() if speed >= 0.95 * best)

    def _trial(self, recipe: Recipe, lanes: int) -> float | None:
        """Return the seconds that a recipe takes on blank images; None if memory is short."""
        manifest = self.manifest
        described, functions = self._plan(recipe)
        middle = np.float32(np.mean(manifest.value_range))
        condition = None
        if manifest.condition_size:
            condition = np.zeros((lanes, manifest.condition_size), dtype=np.float32)
        try:
            found = self._run(
                functions,
                described,
                images=np.full((lanes, manifest.pixels), middle),
                condition=condition,
                target_ids=np.arange(lanes, dtype=np.uint64),
                seed=0,
                lanes=lanes,
            )
        except (_core.OutOfMemory, MemoryError):
            return None
        except _core.RunFailed as error:
            raise RunError(_one_line(error)) from None
        if found["cancelled"]:
            raise KeyboardInterrupt
        return float(found["total_seconds"])

    def _too_many(self, lanes: int, recipe: Recipe) -> DeviceError:
        """Return the error for lanes that the device's memory does not hold, with how many fit."""
        fitting = lanes // 2
        while fitting and self._trial(_short(recipe), fitting) is None:
            fitting //= 2
        mend = f"lanes={fitting} fits" if fitting else "one is too many; use another device"
        return DeviceError(f"{self.device} has no memory for {lanes} lanes; {mend}")


def _is_second_order(stage: Stage) -> bool:
    return isinstance(stage.solver, LevenbergMarquardt)


def _short(recipe: Recipe) -> Recipe:
    """Return a recipe that evaluates what this one does, once or twice each."""
    pairs = dict.fromkeys((stage.loss, _is_second_order(stage)) for stage in recipe.stages)
    stages = tuple(
        Stage(LevenbergMarquardt() if second else GradientDescent(1e-6), max_steps=1, loss=loss)
        for loss, second in pairs
    )
    return Recipe("trial", stages)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_target_ids(target_ids: Any, count: int) -> NDArray[np.uint64]:
    if target_ids is None:
        return np.arange(count, dtype=np.uint64)
    expected = f"{count} whole numbers from 0 to below 2^47"
    ids = as_numpy(target_ids, "target_ids", expected)
    if ids.dtype.kind not in "iu" or ids.shape != (count,):
        raise InputError(
            f"target_ids must be {expected}, got {ids.dtype} [{', '.join(map(str, ids.shape))}]; "
            "give one a target"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= MAX_TARGET_IDS:
        raise InputError(
            f"target_ids must be {expected}, got {int(ids.min())} to {int(ids.max())}; "
            "number the targets from 0"
        )
    return np.ascontiguousarray(ids, dtype=np.uint64)


def _group_sizes(count: int, lanes: int) -> list[int]:
    """Return the sizes of ceil(count / lanes) groups, as equal as possible, the larger first."""
    groups = -(-count // lanes)
    return [count // groups + (index < count % groups) for index in range(groups)]


def _groups(count: int, lanes: int) -> Iterator[slice]:
    start = 0
    for size in _group_sizes(count, lanes):
        yield slice(start, start + size)
        start += size
