"""``Inverter``: the public interface to a bundle and the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import recipes
from pyinv.advice import (
    are_eight_bit,
    check_range,
    next_step,
    not_exact,
    peak_ratio,
    wants_exact,
)
from pyinv.batching import (
    AUTO_BATCH_SIZES,
    DEFAULT_BATCH_SIZE,
    choose_batch_size,
    group_sizes,
    groups,
    too_large,
)
from pyinv.bundle import RUNTIMES, Bundle, Function, Manifest
from pyinv.cancellation import Cancel, stoppable
from pyinv.caution import strict_mode, warn
from pyinv.conditions import condition_rows
from pyinv.cores import MAX_THREADS, usable_cores
from pyinv.devices import resolve_device
from pyinv.errors import (
    BundleError,
    CancelledError,
    DeviceError,
    InputError,
    OutOfMemoryError,
    PyinvError,
    PyinvWarning,
    RunError,
    one_line,
)
from pyinv.images import check_fit, check_images
from pyinv.interrupts import deferred
from pyinv.progress import Progress, progress_reporter
from pyinv.recipes import MAX_RESTARTS, Recipe
from pyinv.result import Inversion, Status
from pyinv.session import Session, StreamRun
from pyinv.streaming import Source, StreamPlan, TargetResult
from pyinv.streaming import results as stream_results
from pyinv.target_ids import MAX_TARGET_IDS, check_target_ids
from pyinv.uncertainty import Uncertainty
from pyinv.uncertainty.search import DEFAULT_HOPS, Search, Targets
from pyinv.validation import check_rows, noise_level, whole_number
from pyinv.weights import check_rows_of_weights, check_weights, effective_values, mean_values

__all__ = ["Inverter"]

FloatArray = NDArray[np.float32]


class Inverter:
    """Inverts images, or targets of any other shape, with one exported generator.

    Targets are images, or observations of images if the bundle was exported with ``observe``: then
    every argument ``images`` is [N, *target_shape], in any range, except where a method says
    otherwise.

    Images are [N, C, H, W], or in general [N, *image_shape] with the ``image_shape`` of the
    bundle's manifest: vectors [N, n], audio [N, C, T], volumes [N, C, D, H, W] and so on. Of these,
    "pixels" are the values.

    Args:
        bundle: a bundle's directory or address, as in ``Bundle.open``, or an open ``Bundle``.
        runtime: "onnx" or "torchscript", if the bundle supports it, or "auto" for the first
            runtime that the bundle lists. TorchScript needs PyTorch.
        device: "cpu"; "cuda", which means "cuda:0"; a specific GPU such as "cuda:1"; or "auto" for
            the first GPU if there is one and the runtime can use it, otherwise the CPU.
        batch_size: number of targets that run in parallel, at least 1; capped at the number of
            targets. Larger batches use more memory and, up to a point, make better use of the
            device. "auto" benchmarks the engine before the first run and picks the smallest batch
            size within 5 % of the best speed. It tries 8, 16, 32, 64 and 128 targets (which takes
            about as long as 16 steps of 64), or on a GPU 64, 256, 1,024 and so on up to 16,384, as
            far as memory and targets allow. The normal equations of ``LevenbergMarquardt`` need far
            more memory per target than a loss. They are evaluated in chunks that fit into 128 MiB
            (8 GiB on a GPU), according to the bundle's own figure. Results do not depend on the
            batch size, up to rounding, unless targets are coupled (bundles with
            ``batch_norm="batch"``, ``MomentPenalty(over="batch")``). For coupled targets the batch
            size is the largest group, and "auto" means 64.
        threads: number of CPU threads, from 1 to 1024. None uses every physical core available to
            this process. Use fewer if other programs keep cores busy: a thread that waits for a
            core slows down all others.
        tf32: let a GPU round the inputs of matrix products and convolutions to TF32's 10 bits of
            mantissa. This is faster, with relative errors near 1e-3 instead of 1e-6. No effect on
            the CPU.

    Raises:
        BundleError: the bundle is missing or damaged, or does not support the runtime.
        DependencyError: the runtime is missing, installed twice or incompatible; the message
            includes the command that fixes it.
        DeviceError: the device does not exist, or the runtime cannot use it.
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
        batch_size: int | str = DEFAULT_BATCH_SIZE,
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
        # Fail on a wrong name or a missing GPU before reading the bundle.
        resolve_device(device, runtime_has_cuda=False)
        if not isinstance(batch_size, str) or batch_size != "auto":
            batch_size = whole_number("batch_size", batch_size, at_least=1, or_else='"auto"')
        self._batch_size = batch_size
        self._session = Session(
            bundle if isinstance(bundle, Bundle) else Bundle.open(bundle),
            runtime=runtime,
            device=device,
            threads=usable_cores()
            if threads is None
            else whole_number("threads", threads, at_least=1, at_most=MAX_THREADS),
            tf32=tf32,
        )

    def __reduce__(self) -> Any:
        # Sessions of a runtime cannot be pickled; another process opens its own.
        session = self._session
        options = {
            "runtime": session.runtime,
            "device": session.device,
            "batch_size": self._batch_size,
            "threads": session.threads,
            "tf32": session.tf32,
        }
        return _reopen, (str(self.bundle.path.absolute()), self.bundle.digest, options)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> Inverter:
        """Return an Inverter of a bundle from a folder, the Hugging Face hub, or a URL.

        Args:
            source: as for ``Bundle.from_pretrained``: the path of a folder; an address,
                "hf://USER/NAME" or a URL; or "USER/NAME", a repository of the hub.
            revision: for the hub: a branch, tag or commit.
            cache_dir: the folder for downloaded bundles.
            token: for the hub: a token; None for the one that is logged in, False for none.
            options: the other arguments of ``Inverter``.

        Raises:
            PyinvError: any error of ``Bundle.from_pretrained`` or ``Inverter``.

        Examples:
            >>> inverter = pyinv.Inverter.from_pretrained("user/faces", threads=2)  # doctest: +SKIP
        """
        bundle = Bundle.from_pretrained(source, revision=revision, cache_dir=cache_dir, token=token)
        return cls(bundle, **options)

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._session.bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest: shapes, value range, prior, losses."""
        return self._session.manifest

    @property
    def runtime(self) -> str:
        """The runtime in use, "onnx" or "torchscript"."""
        return self._session.runtime

    @property
    def device(self) -> str:
        """The device in use, "cpu" or "cuda:0" and so on."""
        return self._session.device

    @property
    def threads(self) -> int:
        """The CPU threads in use."""
        return self._session.threads

    @property
    def batch_size(self) -> int | str:
        """The requested batch size, or "auto"."""
        return self._batch_size

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"<Inverter of {manifest.name or self.bundle.path.name}: "
            f"latent {list(manifest.latent_shape)}, {manifest.prior}, "
            f"image {list(manifest.image_shape)}, losses {', '.join(manifest.losses)}; "
            f"{self.runtime} on {self.device}, batch size {self._batch_size}, "
            f"{self.threads} threads>"
        )

    @stoppable
    def invert(
        self,
        images: Any,
        *,
        recipe: str | Recipe = "default",
        loss: str | None = None,
        max_steps: int | None = None,
        restarts: int | None = None,
        seed: int = 0,
        init: Any = None,
        conditions: Any = None,
        weights: Any = None,
        target_ids: Any = None,
        trace_every: int = 0,
        true_latents: Any = None,
        effort: str | None = None,
        noise: float | None = None,
        strict: bool = False,
        progress: bool | Progress | None = None,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> Inversion:
        """Find the latents of images.

        Args:
            images: the targets, [N, *image_shape] floats in the bundle's value range, N >= 1.
                NumPy, PyTorch (CPU) or any DLPack array; not copied if C-contiguous float32.
            recipe: a name in ``pyinv.recipes.RECIPES`` or a ``Recipe``. "precise" and
                "reconstruct" need a bundle with normal equations, except for "reconstruct" with an
                encoder.
            loss: one of the bundle's losses, ``manifest.losses``, which every stage of the recipe
                then minimises; None uses the recipe's own. Any loss will do for recipes that need
                gradients only, and a loss with normal equations for the others. Your own, such as
                a perceptual loss, is exported with the generator:
                ``export(..., losses={"mse": "mse", "mine": function})``.
            max_steps: maximum number of steps of each stage, at least 1; None uses the recipe's.
                Schedules that count steps do not scale with it.
            restarts: number of further attempts for targets that have not converged; None uses the
                recipe's. Without a loss tolerance in the recipe no target converges, so every
                target runs every restart.
            seed: 0 to 2^64 - 1. All random draws depend only on the seed and the target's id.
            init: initial latents, [N, *latent_shape] or [N, d], or "encoder" for the output of the
                bundle's encoder. None uses the recipe's ``start``. Restarts always start from a
                random draw or a hop.
            conditions: what the generator takes beside the latent, by name, such as
                ``{"label": [3, 1, ...], "psi": 0.7}``; ``manifest.conditions`` lists it. A label is
                one whole number for each target, any other condition is [N, *shape]. One number
                stands for all targets. A bundle with one condition also takes its values alone.
            weights: for bundles exported with ``weights=True``: how much each pixel counts, numbers
                or booleans >= 0 that broadcast to [N, *image_shape], such as a mask [H, W] for all
                images or [N, 1, H, W]. Losses are weighted means, sum(w l) / sum(w), so each
                target needs a weight above 0. Pixels of weight 0 may hold any finite value in the
                value range. None weights all pixels alike. With "reconstruct", the noise of a pixel
                has the variance noise^2 / w, and the weight of the prior is that for the mean
                number of pixels per target.
            target_ids: N whole numbers below 2^47 that seed each target's random draws; 0 to N - 1
                by default. To split a job over several calls or machines, pass each part the row
                numbers of its targets.
            trace_every: record the loss every ``trace_every`` steps; 0 records no trace. Takes
                N * (1 + max_steps // trace_every) floats.
            true_latents: the latents that generated the images, [N, *latent_shape] or [N, d], if
                known. Used only for the Inversion's ``min_latent_error``, the smallest distance of
                each target to its true latent at any step.
            effort: for the recipe "default": "fast", "default" or "best".
            noise: for the recipe "reconstruct": the standard deviation of the pixel noise, if
                known, the same for all images. A Recipe object has its own.
            strict: raise an error instead of a ``PyinvWarning`` about a likely mistake: images that
                seem to be scaled for another value range, or that "precise" is not meant for.
            progress: True for a progress bar on standard error, or a line every ten seconds if that
                is not a terminal; or a function that is called with a dict at most ten times per
                second. "finished" and "targets" count targets, and
                "active" counts those in progress. "evaluations" counts evaluations of the objective
                (one per target and step) and of normal equations. "mean_loss" is the mean over
                active targets.
            timeout: seconds after which the call ends as after Ctrl-C, above 0; None: no limit.
            cancel: a ``threading.Event`` that another thread sets to end the call as Ctrl-C does.

        Returns:
            the Inversion. Ctrl-C returns with the results so far and ``cancelled=True``: within a
            step with TorchScript or on a GPU, and within an operator of a step with ONNX Runtime.

        Raises:
            InputError: an argument of the wrong shape, type or range; or, if ``strict``, a likely
                mistake.
            RuleError: an unknown recipe, or rules that do not fit the bundle's prior.
            BundleError: the bundle has no objective for one of the recipe's losses, no normal
                equations where the recipe needs them, or no encoder to start from.
            DeviceError: the batch does not fit in the GPU's memory; the message says how many
                targets fit.
            RunError: the runtime failed during the run, or if ``strict``, the recipe "precise"
                turned out not to fit the images; the error's attribute ``inversion`` holds the
                results so far. An exception from a progress function gets it as well.
            CancelledError: ``timeout`` or ``cancel`` ended the call before the first step.
        """
        manifest, session = self.manifest, self._session
        noise = noise_level(noise)
        weighting = check_weights(weights, manifest)
        if noise is not None and recipe != "reconstruct":
            raise InputError(
                'noise is for recipe="reconstruct"; leave it out, or ask for that recipe. A Recipe '
                "has its own: pyinv.recipes.reconstruct(manifest, noise)"
            )
        start = None
        if isinstance(init, str):
            if init != "encoder":
                raise InputError(f'init must be latents or "encoder", got {init!r}')
            init, start = None, init
        recipe = self._resolve(
            recipe,
            {"max_steps": max_steps, "restarts": restarts},
            noise,
            start,
            effort,
            weighting,
            initial=init is not None,
        )
        if loss is not None:
            recipe = recipes.with_loss(recipe, loss, manifest)
        coupled = recipe.is_coupled(manifest)
        encodes = recipe.start == "encoder" and init is None
        plan = session.plan(recipe)
        if encodes:
            session.function(manifest.encode(self.runtime))  # fail before checking the images
        targets = check_images(images, manifest)
        count = len(targets)
        conditions = condition_rows(manifest.conditions, conditions, count)
        check_rows_of_weights(weighting, count)
        initial = None if init is None else check_rows(init, "init", manifest.latent_shape, count)
        known = None
        if true_latents is not None:
            known = check_rows(true_latents, "true_latents", manifest.latent_shape, count)
        ids = check_target_ids(target_ids, count)
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        trace_every = whole_number("trace_every", trace_every, at_least=0, at_most=2**31 - 1)
        if not isinstance(strict, bool):
            raise InputError(f"strict must be True or False, got {strict!r}")
        eight_bit = are_eight_bit(targets, manifest)
        with strict_mode(strict, InputError):
            doubt = self._check_range(targets, conditions)
            if wants_exact(recipe) and eight_bit:
                warn(
                    "the images have 8-bit values, so the recipe precise cannot reproduce them "
                    "exactly: use the recipe default or reconstruct"
                )

        batch_size = self._batch_size_for(recipe, count, coupled)
        if manifest.batch_norm == "batch" and min(group_sizes(count, batch_size)) < 2:
            raise InputError(
                f"this bundle takes batch-norm statistics over the batch and needs groups of 2 or "
                f"more targets, got {count} target{'' if count == 1 else 's'} with "
                f'batch_size={batch_size}; give more, or export with batch_norm="eval"'
            )
        if encodes:
            initial = session.encode(targets, conditions, batch_size)

        def inversion_of(found: dict[str, Any], *, whole: bool) -> Inversion:
            latents = found["latents"]
            psnr, hint = None, ""
            if not manifest.observes:
                mse = self._mean_square(
                    found,
                    recipe,
                    targets,
                    conditions,
                    weighting,
                    batch_size if whole else None,
                    interrupted=received,
                )
                psnr = peak_ratio(mse, manifest.value_range)
            if whole:
                hint = next_step(
                    found["status"], psnr, recipe, manifest, eight_bit=eight_bit, doubt=doubt
                )
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
                min_latent_error=found["min_latent_error"],
                psnr=psnr,
                hint=hint,
                _images=lambda: session.generate(latents, conditions, batch_size),
            )

        # From here on, Ctrl-C loses no result.
        with deferred() as received, progress_reporter(progress, count, recipe.max_steps) as report:
            try:
                found = session.run(
                    plan,
                    images=targets.reshape(count, -1),
                    initial=initial,
                    condition=conditions,
                    weights=weighting,
                    true_latents=known,
                    target_ids=ids,
                    seed=seed,
                    lanes=batch_size,
                    coupled=coupled,
                    trace_every=trace_every,
                    progress=report,
                )
            except Exception as error:
                partial = getattr(error, "partial", None)
                if partial is None:
                    raise
                inversion = inversion_of(partial, whole=False)
                if not isinstance(error, (OutOfMemoryError, RunError)):  # by the progress function
                    error.inversion = inversion  # type: ignore[attr-defined]
                    raise
                done = count - inversion.counts()["cancelled"]
                failure: PyinvError = error
                if isinstance(error, OutOfMemoryError):
                    failure = too_large(session, recipe, batch_size)
                    if not done:
                        raise failure from None
                raise RunError(
                    f"{one_line(failure)}; {done} of {count} targets were done before",
                    inversion,
                ) from None
            inversion = inversion_of(found, whole=not found["cancelled"])
        if wants_exact(recipe) and not eight_bit and not inversion.cancelled:
            problem = not_exact(inversion.status)
            refused = bool(problem) and strict
            if problem and not strict:
                try:
                    warn(problem)
                except PyinvWarning:  # Python makes warnings errors; the results must not be lost
                    refused = True
            if refused:
                raise RunError(problem, inversion)
        return inversion

    def stream(
        self,
        source: Iterable[Any],
        *,
        recipe: str | Recipe = "default",
        loss: str | None = None,
        max_steps: int | None = None,
        restarts: int | None = None,
        seed: int = 0,
        effort: str | None = None,
        noise: float | None = None,
        init: str | None = None,
        ordered: bool = False,
        window: int | None = None,
        fit: str = "crop",
        workers: int = 2,
        on_error: str = "result",
    ) -> Generator[TargetResult, None, None]:
        """Find the latents of images that arrive one by one, with constant memory.

        A target enters as soon as a lane of the batch is free, and its result is yielded as soon as
        it is finished, so that a lone image takes as long as alone and many images fill the batch.
        Files are decoded by threads while the engine works. The latents are those that ``invert``
        finds for the same target ids, up to rounding.

        Args:
            source: an iterable of targets, read by a thread. Each is

                - an image [*image_shape] or a batch [n, *image_shape] of floats in the bundle's
                  value range, as for ``invert``;
                - the path of anything that ``load_images`` reads, the bytes of an image file, or an
                  open file. A folder gives its images one by one; the images of an array file are
                  loaded together;
                - a pair (id, image), or (ids, batch);
                - a dictionary with "image", and optionally "id" and, for bundles that have them,
                  "conditions" and "weights", as for ``invert``. The recipe "reconstruct" weights
                  the prior as for weights of 1.

                An image may also be a function without arguments that returns one; the decoding
                threads call it.

            recipe: as for ``invert``.
            loss: as for ``invert``.
            max_steps: as for ``invert``.
            restarts: as for ``invert``.
            seed: 0 to 2^64 - 1. Random draws depend on the seed and on the id given with the
                target, see ``pyinv.target_id``; without one, on its position in the source.
            effort: as for ``invert``.
            noise: as for ``invert``.
            init: "encoder" starts from the output of the bundle's encoder; None uses the recipe's
                ``start``.
            ordered: yield results in the order of the source instead of as they finish.
            window: the largest number of targets in the stream: read, and not yielded yet. From 1
                to 2^20; None uses four times the batch size. A window below the batch size leaves
                lanes empty. With ``ordered``, a slow target holds back what is more than a window
                behind.
            fit: how to resize image files, see ``load_images``.
            workers: number of threads that decode and check images, at least 1.
            on_error: "result" gives a target that cannot be read, or is no image of this bundle, a
                result with the status ``INVALID`` and a reason, and goes on; "raise" raises an
                InputError after the results that have finished.

        Returns:
            a generator of results. Closing it, or an exception in its consumer, ends the run
            within a step. After Ctrl-C it yields what has finished and raises KeyboardInterrupt.

        Raises:
            InputError: an argument of the wrong type or range, or a bundle whose targets affect one
                another (``batch_norm="batch"``), before anything starts; with
                ``on_error="raise"``, an invalid target.
            RuleError, BundleError, DeviceError: as for ``invert``.
            RunError: the runtime failed.

        Examples:
            >>> for result in inverter.stream(["photos/"]):               # doctest: +SKIP
            ...     save(result.id, result.latent)
        """
        changes = {"max_steps": max_steps, "restarts": restarts}
        chosen = self._stream_recipe(recipe, changes, noise, init, effort, loss)
        if isinstance(source, str | os.PathLike):
            source = [source]
        if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
            raise InputError(
                "source must be an iterable of images, (id, image) pairs, dictionaries or paths, "
                f"got {type(source).__name__}"
            )
        if not isinstance(ordered, bool):
            raise InputError(f"ordered must be True or False, got {ordered!r}")
        if on_error not in ("result", "raise"):
            raise InputError(f'on_error must be "result" or "raise", got {on_error!r}')
        check_fit(fit)
        workers = whole_number("workers", workers, at_least=1)
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        if window is not None:
            window = whole_number("window", window, at_least=1, at_most=2**20)
        plan = self._stream_plan(chosen)
        window = 4 * plan.lanes if window is None else window
        return stream_results(
            lambda: self._open_stream(plan, seed=seed, rows=window),
            Source(source, self.manifest, fit, workers),
            manifest=self.manifest,
            encode=self._start if plan.encodes else None,
            measures_mse=plan.measures_mse,
            ordered=ordered,
            window=window,
            raises=on_error == "raise",
        )

    @stoppable
    def generate(
        self,
        latents: Any,
        *,
        conditions: Any = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> FloatArray:
        """Generate the images of latents, G(z).

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1.
            conditions: as for ``invert``.
            batch_size: the maximum batch size, at least 1; None uses the Inverter's. With
                ``batch_norm="batch"`` the images of a batch depend on one another; batches are as
                equal in size as possible.
            timeout: as for ``invert``.
            cancel: as for ``invert``.

        Returns:
            float32 [N, *image_shape] in the bundle's value range.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            CancelledError: ``timeout`` or ``cancel`` ended the call.
        """
        flat = check_rows(latents, "latents", self.manifest.latent_shape, None)
        conditions = condition_rows(self.manifest.conditions, conditions, len(flat))
        return self._session.generate(flat, conditions, self._most(batch_size))

    def observe(self, images: Any, *, batch_size: int | None = None) -> FloatArray:
        """Observe images with the bundle's operator, y = A(x).

        Those of latents are ``observe(generate(latents))``.

        Args:
            images: [N, *image_shape], N >= 1.
            batch_size: the maximum batch size, at least 1; None uses the Inverter's.

        Returns:
            the targets, float32 [N, *target_shape].

        Raises:
            InputError: an argument of the wrong shape or type, or not finite.
            BundleError: the bundle's targets are its images.
        """
        manifest = self.manifest
        manifest.observe(self.runtime)
        flat = check_rows(images, "images", manifest.image_shape, None)
        return self._session.observe(
            flat.reshape(-1, *manifest.image_shape), self._most(batch_size)
        )

    @stoppable
    def encode(
        self,
        images: Any,
        *,
        conditions: Any = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> FloatArray:
        """Encode images with the bundle's encoder, in one forward pass.

        Args:
            images: [N, *image_shape], as for ``invert``.
            conditions: as for ``invert``.
            batch_size: the maximum batch size, at least 1; None uses the Inverter's.
            timeout: as for ``invert``.
            cancel: as for ``invert``.

        Returns:
            latents, float32 [N, *latent_shape]. They are approximate;
            ``invert(images, init="encoder")`` starts from them and refines them.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no encoder; the message says how to get one.
            CancelledError: ``timeout`` or ``cancel`` ended the call.
        """
        manifest = self.manifest
        manifest.encode(self.runtime)
        targets = check_images(images, manifest)
        conditions = condition_rows(self.manifest.conditions, conditions, len(targets))
        self._check_range(targets, conditions)
        flat = self._session.encode(targets, conditions, self._most(batch_size))
        return flat.reshape(len(flat), *manifest.latent_shape)

    def evaluate(
        self,
        latents: Any,
        images: Any,
        *,
        loss: str = "mse",
        conditions: Any = None,
        weights: Any = None,
        batch_size: int | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Return the loss between G(latents) and images, and its gradient.

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1.
            images: [N, *image_shape], as for ``invert``.
            loss: one of the bundle's losses, a mean over pixels.
            conditions: as for ``invert``.
            weights: as for ``invert``.
            batch_size: the maximum batch size, at least 1; see ``generate``.

        Returns:
            (loss [N], gradient [N, *latent_shape]), float32. Each row's gradient is that of its own
            loss, or with ``batch_norm="batch"`` that of the summed loss of its batch.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no such loss.
        """
        function = self.manifest.objective(loss, self.runtime)
        found = self._evaluate(function, latents, images, conditions, weights, batch_size)
        return found["loss"], found["gradient"]

    def normal_equations(
        self,
        latents: Any,
        images: Any,
        *,
        loss: str = "mse",
        conditions: Any = None,
        weights: Any = None,
        batch_size: int | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        r"""Return the loss between G(latents) and images, its gradient, and its gram matrix.

        With the residual r over P pixels and its Jacobian J at the latent, the loss is
        $\frac{1}{P} \lVert r \rVert^2$, the gradient $\frac{2}{P} J^T r$, and the gram
        matrix $\frac{2}{P} J^T J$. A Gauss-Newton step solves gram · step = -gradient. Weights
        multiply each pixel's square, and P is then their sum.

        Args:
            latents: [N, *latent_shape] or [N, d], N >= 1.
            images: [N, *image_shape], as for ``invert``.
            loss: one of the bundle's losses with normal equations: "mse" or "whitened".
            conditions: as for ``invert``.
            weights: as for ``invert``.
            batch_size: the maximum batch size, at least 1. None uses the Inverter's, reduced if
                necessary so that the Jacobians fit in 128 MiB (8 GiB on a GPU).

        Returns:
            (loss [N], gradient [N, *latent_shape], gram [N, d, d]), float32.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no normal equations of this loss.
            DeviceError: the batch does not fit in the GPU's memory.
        """
        function = self.manifest.normal_equations(loss, self.runtime)
        found = self._evaluate(function, latents, images, conditions, weights, batch_size)
        return found["loss"], found["gradient"], found["gram"]

    @stoppable
    def uncertainty(
        self,
        latents: Inversion | Any,
        images: Any,
        *,
        noise: float | None = None,
        n_hops: int = DEFAULT_HOPS,
        seed: int | None = None,
        target_ids: Any = None,
        conditions: Any = None,
        weights: Any = None,
        batch_size: int | None = None,
        progress: bool | Progress | None = None,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> Uncertainty:
        """Estimate how far the true latents may be from the ones that were found.

        The estimate combines the local uncertainty around each latent with other optima of the
        posterior that hops find and that fit the image equally well. docs/uncertainty.md describes
        the method and when its intervals can be trusted.

        Args:
            latents: an Inversion, or latents [N, *latent_shape] or [N, d], N >= 1. In an Inversion,
                targets that converged to the loss tolerance reproduce their images exactly, so they
                are not searched for other optima. Cancelled targets stay unknown.
            images: [N, *image_shape], the images that were inverted.
            noise: the standard deviation of the pixel noise, in the bundle's value range, above 0.
                None estimates it for each image from the residual, which needs more pixels than the
                latent has components.
            n_hops: number of searches for other optima from each latent, 0 to 4095. Each costs
                about as much as a hop of the recipe "reconstruct". With 0, each target takes one
                evaluation of the normal equations, and other latents that generate the same image
                are not considered.
            seed: 0 to 2^64 - 1, for the hops; None uses the Inversion's, or 0.
            target_ids: as for ``invert``, for the hops.
            conditions: as for ``invert``.
            weights: as for ``invert``; give those that the images were inverted with. The noise of
                a pixel has the variance noise^2 / weight.
            batch_size: the maximum batch size, at least 1. None uses the Inverter's, reduced if
                necessary so that the Jacobians fit in 128 MiB (8 GiB on a GPU). Hops always use the
                Inverter's.
            progress: for the hops, as for ``invert``; each hop counts as a target.
            timeout: as for ``invert``.
            cancel: as for ``invert``.

        Returns:
            the Uncertainty: standard errors, condition numbers, which latents the images determine,
            and the noise. Ctrl-C returns the results so far, with ``cancelled=True``.

        Raises:
            InputError: an argument of the wrong shape, type or range.
            BundleError: the bundle has no normal equations of "mse".
            DeviceError: a single image's Jacobian, or the batch, does not fit in the GPU's memory.
            RunError: something failed during the run; the error's attribute ``uncertainty`` holds
                the results so far. An exception from a progress function gets it as well.
        """
        noise = noise_level(noise)
        n_hops = whole_number("n_hops", n_hops, at_least=0, at_most=MAX_RESTARTS)
        inversion = latents if isinstance(latents, Inversion) else None
        if seed is None:
            seed = 0 if inversion is None else inversion.seed
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        weighting = check_weights(weights, self.manifest)
        self.check_uncertainty(noise=noise, weights=weights)
        targets = check_images(images, self.manifest)
        count, shape = len(targets), self.manifest.latent_shape
        check_rows_of_weights(weighting, count)
        if inversion is None:
            flat = check_rows(latents, "latents", shape, count)
            status = np.full(count, Status.STEP_LIMIT)
        else:
            flat = check_rows(inversion.latents, "latents", shape, count, finite=False)
            status = inversion.status
        found = Uncertainty.unknown(count, shape)
        done = np.flatnonzero(status != Status.CANCELLED)
        part = found[done]
        queries = Targets(
            flat,
            targets,
            condition_rows(self.manifest.conditions, conditions, count),
            weighting,
            check_target_ids(target_ids, count),
        )[done]
        search = Search(
            self._session,
            noise=noise,
            batch_size=None if batch_size is None else self._most(batch_size),
            lanes=self._most(None),
        )

        def known() -> Uncertainty:
            found.put(done, part)
            return found

        try:
            losses = search.measure(queries, part)
            rows = np.flatnonzero(status[done] != Status.CONVERGED_TOLERANCE)
            search.widen(queries, part, losses, rows, n_hops=n_hops, seed=seed, progress=progress)
        except (KeyboardInterrupt, CancelledError):
            return replace(known(), cancelled=True)
        except Exception as error:
            measured = int(np.isfinite(known().noise).sum())
            failed = isinstance(error, (RunError, BundleError, MemoryError))
            if failed or (isinstance(error, DeviceError) and measured):
                raise RunError(
                    f"{one_line(error)}; the uncertainty of {measured} of {count} targets is known",
                    uncertainty=found,
                ) from None
            error.uncertainty = found  # type: ignore[attr-defined]
            raise
        return known()

    def check_uncertainty(self, *, noise: float | None = None, weights: Any = None) -> None:
        """Raise now whatever would make ``uncertainty`` fail, for example before a long ``invert``.

        Args:
            noise: as for ``uncertainty``.
            weights: as for ``uncertainty``.

        Raises:
            InputError: the noise is out of range, or cannot be estimated and must be given.
            BundleError: the bundle has no normal equations of "mse", or they cannot be loaded.
        """
        noise = noise_level(noise)
        manifest = self.manifest
        for function in (manifest.objective, manifest.normal_equations):
            self._session.objective(function("mse", self.runtime))
        weighting, values = check_weights(weights, manifest), manifest.target_size
        if weighting is not None:
            values = int(effective_values(weighting, known_noise=False).min())
        if noise is None and values <= manifest.latent_size:
            raise InputError(
                f"noise must be given: {values} values are too few to estimate it "
                f"beside {manifest.latent_size} latent components"
            )

    def sample(self, n: int, *, seed: int = 0) -> FloatArray:
        """Draw n latents from the prior, float32 [n, *latent_shape].

        Args:
            n: number of latents, at least 1. A larger n extends the same sequence.
            seed: 0 to 2^64 - 1. ``invert`` never makes the same draws, even with the same seed.

        Raises:
            InputError: an argument out of range.
        """
        n = whole_number("n", n, at_least=1, at_most=MAX_TARGET_IDS)
        seed = whole_number("seed", seed, at_least=0, at_most=2**64 - 1)
        ids = np.arange(n, dtype=np.uint64) + np.uint64(MAX_TARGET_IDS)
        return self._session.draw(seed, ids, 0).reshape(n, *self.manifest.latent_shape)

    def _resolve(
        self,
        recipe: str | Recipe,
        changes: dict[str, int | None],
        noise: float | None,
        start: str | None = None,
        effort: str | None = None,
        weights: FloatArray | None = None,
        *,
        initial: bool = False,
    ) -> Recipe:
        manifest = self.manifest
        if effort is not None and recipe != "default":
            raise InputError(
                'effort is for recipe="default"; leave it out, or ask for that recipe. A Recipe '
                "has its own: pyinv.recipes.default(manifest, effort=...)"
            )
        if recipe == "reconstruct":
            values = mean_values(weights, known_noise=noise is not None)
            recipe = recipes.reconstruct(manifest, noise, start=start or "mean", n_values=values)
        elif isinstance(recipe, str):
            recipe = recipes.get(recipe, manifest, start=start, effort=effort, initial=initial)
        elif not isinstance(recipe, Recipe):
            raise InputError(
                "recipe must be a name or a pyinv.Recipe, got "
                f"{type(recipe).__name__}; the names are {', '.join(recipes.RECIPES)}"
            )
        given = {**changes, "start": start}
        recipe = recipe.replace(**{name: to for name, to in given.items() if to is not None})
        return recipe.fit(manifest.prior)

    def _stream_recipe(
        self,
        recipe: str | Recipe,
        changes: dict[str, int | None],
        noise: float | None,
        init: str | None,
        effort: str | None,
        loss: str | None,
    ) -> Recipe:
        """Return the recipe of a stream, or raise what ``stream`` raises."""
        noise = noise_level(noise)
        if noise is not None and recipe != "reconstruct":
            raise InputError(
                'noise is for recipe="reconstruct"; leave it out, or ask for that recipe'
            )
        if init not in (None, "encoder"):
            raise InputError(f'init must be "encoder" or None, got {init!r}')
        chosen = self._resolve(recipe, changes, noise, init, effort)
        if loss is not None:
            chosen = recipes.with_loss(chosen, loss, self.manifest)
        if chosen.is_coupled(self.manifest):
            raise InputError(
                "a stream needs targets that do not affect one another: this bundle or recipe "
                'takes statistics over the batch; use invert, or export with batch_norm="eval"'
            )
        return chosen

    def _stream_plan(self, recipe: Recipe) -> StreamPlan:
        """Return what a stream of this recipe runs; choose its lanes, which may take a benchmark.

        Raises:
            BundleError: the bundle has no function that the recipe needs.
        """
        manifest, session = self.manifest, self._session
        plan = session.plan(recipe)
        encodes = recipe.start == "encoder"
        if encodes:
            session.function(manifest.encode(self.runtime))
        return StreamPlan(
            plan,
            lanes=self._batch_size_for(recipe, max(AUTO_BATCH_SIZES[session.device_kind]), False),
            encodes=encodes,
            measures_mse=not manifest.observes and all(s.loss == "mse" for s in recipe.stages),
        )

    def _open_stream(self, plan: StreamPlan, *, seed: int, rows: int) -> StreamRun:
        return self._session.stream(
            plan.plan, seed=seed, lanes=plan.lanes, rows=rows, has_initial=plan.encodes
        )

    def _start(self, images: FloatArray, conditions: FloatArray | None) -> FloatArray:
        """Return the encoder's latents of checked targets, [n, d]."""
        return self._session.encode(images, conditions, self._most(None))

    def _check_range(self, images: FloatArray, conditions: FloatArray | None) -> str:
        """Warn about images probably scaled for another value range; return the warning or ""."""

        def own_images() -> FloatArray:
            given = None if conditions is None else conditions[np.arange(16) % len(conditions)]
            latents = self.sample(16).reshape(16, -1)
            return self._session.generate(latents, given, 16)

        return check_range(images, self.manifest, own_images)

    def _mean_square(
        self,
        found: dict[str, Any],
        recipe: Recipe,
        targets: FloatArray,
        conditions: FloatArray | None,
        weights: FloatArray | None,
        batch_size: int | None,
        *,
        interrupted: Callable[[], bool],
    ) -> FloatArray:
        """Return the (weighted) mean squared pixel error of the latents found, [N]; NaN: unknown.

        ``batch_size`` None: what the run has not computed stays unknown.
        """
        loss: FloatArray = found["loss"]
        if all(stage.loss == "mse" for stage in recipe.stages):
            return loss
        squares = np.full(len(loss), np.nan, dtype=np.float32)
        if batch_size is None:
            return squares
        for rows in groups(len(loss), batch_size):
            if interrupted():
                break
            given = None if conditions is None else conditions[rows]
            try:
                images = self._session.generate(found["latents"][rows], given, batch_size)
            except PyinvError:  # the results of the run come first
                break
            error = (images - targets[rows]).reshape(len(images), -1) ** 2
            part = None
            if weights is not None:
                part = np.broadcast_to(weights, (len(loss), error.shape[1]))[rows]
            squares[rows] = np.average(error, axis=1, weights=part)
        squares[~np.isfinite(loss)] = np.nan
        return squares

    def _evaluate(
        self,
        function: Function,
        latents: Any,
        images: Any,
        conditions: Any,
        weights: Any,
        batch_size: int | None,
    ) -> dict[str, FloatArray]:
        """Return the results of an objective or normal equations, by name."""
        shape = self.manifest.latent_shape
        targets = check_images(images, self.manifest)
        flat = check_rows(latents, "latents", shape, len(targets))
        given = condition_rows(self.manifest.conditions, conditions, len(flat))
        weighting = check_weights(weights, self.manifest)
        check_rows_of_weights(weighting, len(flat))
        most = self._most(batch_size)
        if batch_size is None and function.name == "normal_equations":
            most = min(most, self._session.most_at_once(function))
        found: dict[str, FloatArray] = {}
        for rows in groups(len(flat), most):
            part = self._session.evaluate(function, rows, flat, targets, given, weighting)
            for name, values in part.items():
                if name not in found:
                    found[name] = np.empty((len(flat), *values.shape[1:]), dtype=np.float32)
                found[name][rows] = values
        found["gradient"] = found["gradient"].reshape(len(flat), *shape)
        return found

    def _most(self, batch_size: int | None) -> int:
        """Return the maximum batch size: ``batch_size``, or the Inverter's."""
        if batch_size is not None:
            return whole_number("batch_size", batch_size, at_least=1)
        return DEFAULT_BATCH_SIZE if self._batch_size == "auto" else int(self._batch_size)

    def _batch_size_for(self, recipe: Recipe, count: int, coupled: bool) -> int:
        """Return the batch size of a run."""
        if self._batch_size != "auto" or coupled:
            return min(self._most(None), count)
        size = choose_batch_size(self._session, recipe, count)
        # Benchmark again in a later call with more targets, until all sizes have been tried.
        if count >= max(AUTO_BATCH_SIZES[self._session.device_kind]):
            self._batch_size = size
        return size


def _reopen(path: str, digest: str, options: dict[str, Any]) -> Inverter:
    """Open a pickled Inverter; raise BundleError if its bundle was changed since."""
    bundle = Bundle.open(path)
    if bundle.digest != digest:
        raise BundleError(
            f"{path}: not the bundle of the pickled Inverter: its digest was {digest}, and is "
            f"{bundle.digest}; pickle it again"
        )
    return Inverter(bundle, **options)
