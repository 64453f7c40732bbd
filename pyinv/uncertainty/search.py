"""Measuring uncertainty: normal equations at each latent, and hops to other optima."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import recipes
from pyinv.errors import DeviceError, OutOfMemoryError
from pyinv.priors import Uniform
from pyinv.progress import Progress, progress_reporter
from pyinv.recipes import MAX_RESTARTS, Recipe
from pyinv.session import Session
from pyinv.uncertainty.laplace import FLOAT32_ROUNDING, TF32_ROUNDING, laplace_uncertainty
from pyinv.uncertainty.mixture import widened
from pyinv.uncertainty.result import Uncertainty
from pyinv.weights import effective_values, mean_values

__all__ = ["DEFAULT_HOPS", "Search", "Targets"]

FloatArray = NDArray[np.float32]

DEFAULT_HOPS = 8
# First and last hop size. With the first, most hops succeed if the image determines the latent
# well; the last is a full draw, independent of the given latent.
HOP_SIZES = (0.5, 1.0)
# Hops run for several targets at a time: enough to keep the lanes busy, limited by the memory for
# copies of the images.
HOP_BYTES = 2**28
# Memory for one float64 copy of the matrices; the measurement needs a few copies.
MATRIX_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Targets:
    """N latents and their images.

    Args:
        latents: float32 [N, d].
        images: float32 [N, *target_shape], the targets.
        condition: float32 [N, k], or None.
        weights: float32 [N, pixels], or [1, pixels] for all targets, or None.
        ids: uint64 [N], target ids, which seed the random draws.
    """

    latents: FloatArray
    images: FloatArray
    condition: FloatArray | None
    weights: FloatArray | None
    ids: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: Any) -> Targets:
        condition = None if self.condition is None else self.condition[rows]
        weights = self.weights
        if weights is not None and len(weights) > 1:
            weights = weights[rows]
        return Targets(self.latents[rows], self.images[rows], condition, weights, self.ids[rows])


class Search:
    """Measures uncertainty with a bundle's functions.

    Args:
        session: the bundle's session; the bundle must have the normal equations of "mse".
        noise: the standard deviation of the pixel noise; None estimates it for each image.
        batch_size: maximum batch size of the normal equations; None uses as many targets as fit in
            memory, up to ``lanes``.
        lanes: maximum number of hops that run in parallel.
    """

    def __init__(
        self, session: Session, *, noise: float | None, batch_size: int | None, lanes: int
    ) -> None:
        self._session = session
        self._noise = noise
        self._batch_size = batch_size
        self._lanes = lanes

    def measure(self, targets: Targets, found: Uncertainty) -> FloatArray:
        """Fill in the uncertainty around each latent's own optimum, in batches.

        Returns:
            the latents' mean squared errors, [N].
        """
        return self._measure(targets, found, self._noise, self._batch_size)

    def widen(
        self,
        targets: Targets,
        found: Uncertainty,
        losses: FloatArray,
        rows: NDArray[np.intp],
        *,
        n_hops: int,
        seed: int,
        progress: bool | Progress | None,
    ) -> None:
        """Hop from the latents of these rows, and include other optima in their uncertainty.

        If it ends early, rows that were not reached are reset to unknown.

        Args:
            targets: all N targets.
            found: their uncertainty, as filled in by ``measure``.
            losses: the losses that ``measure`` returned.
            rows: the rows to hop from.
            n_hops: number of hops from each.
            seed: seed of the hops.
            progress: as for ``Inverter.invert``.
        """
        rows = rows[np.isfinite(found.noise[rows])]
        if not n_hops or not len(rows):
            return
        manifest = self._session.manifest
        values = mean_values(targets.weights, known_noise=self._noise is not None)
        stage = recipes.reconstruct(manifest, self._noise, n_values=values).stages[-1]
        recipe = Recipe("hops", (stage,), keep="last").fit(manifest.prior)
        plan = self._session.plan(recipe)
        total = n_hops * len(rows)
        lanes = min(self._lanes, total)
        most = max(1, min(16 * lanes, HOP_BYTES // (4 * manifest.target_size)) // n_hops)
        done = 0

        def hop(some: NDArray[np.intp], report: Progress | None) -> Uncertainty:
            def offset(now: dict[str, Any]) -> None:
                assert report is not None
                before = done * n_hops
                report(now | {"finished": before + now["finished"], "targets": total})

            repeated = targets[np.repeat(some, n_hops)]
            ended = self._session.run(
                plan,
                images=repeated.images.reshape(len(repeated), -1),
                initial=self._starts(targets[some], n_hops, seed),
                condition=repeated.condition,
                weights=repeated.weights,
                target_ids=repeated.ids,
                seed=seed,
                lanes=lanes,
                progress=None if report is None else offset,
            )
            if ended["cancelled"]:
                raise KeyboardInterrupt
            others = replace(repeated, latents=ended["latents"])
            there = Uncertainty.unknown(len(others), manifest.latent_shape)
            known = np.repeat(found.noise[some], n_hops)
            weights = targets[some].weights
            other_losses = self._measure(others, there, known, None, about=repeated.latents)
            shape = len(some), n_hops
            return widened(
                found[some],
                targets.latents[some],
                losses[some],
                others.latents.reshape(*shape, -1),
                other_losses.reshape(shape),
                there.standard_error.reshape(*shape, -1),
                pixels=manifest.target_size
                if weights is None
                else effective_values(weights, known_noise=True),
                prior=manifest.prior,
            )

        try:
            with progress_reporter(progress, total, recipe.max_steps, unit="hops") as report:
                while done < len(rows):
                    some = rows[done : done + most]
                    try:
                        found.put(some, hop(some, report))
                    except OutOfMemoryError:
                        if lanes == 1:
                            raise
                        lanes //= 2
                        continue
                    done += len(some)
        finally:
            left = rows[done:]
            found.put(left, Uncertainty.unknown(len(left), manifest.latent_shape))

    def _measure(
        self,
        targets: Targets,
        found: Uncertainty,
        noise: float | FloatArray | None,
        batch_size: int | None,
        about: FloatArray | None = None,
    ) -> FloatArray:
        session = self._session
        manifest = session.manifest
        function = manifest.normal_equations("mse", session.runtime)
        if batch_size is None:
            fitting = max(1, MATRIX_BYTES // (8 * manifest.latent_size**2))
            most = min(self._lanes, session.most_at_once(function), fitting)
        else:
            most = batch_size
        losses = np.empty(len(targets), dtype=np.float32)
        start = 0
        while start < len(targets):
            rows = slice(start, start + most)
            some = targets[rows]
            try:
                equations = session.evaluate(
                    function,
                    rows,
                    targets.latents,
                    targets.images,
                    targets.condition,
                    targets.weights,
                )
                generated = None
                if noise is None:
                    generated = session.generate(some.latents, some.condition, most)
                    if manifest.observes:
                        generated = session.observe(generated, most)
            except DeviceError:
                if batch_size is not None or most == 1:
                    raise
                most //= 2
                continue
            part = laplace_uncertainty(
                some.latents,
                some.images,
                generated,
                equations["gradient"],
                equations["gram"],
                prior=manifest.prior,
                value_range=None if manifest.observes else manifest.value_range,
                noise=noise[rows] if isinstance(noise, np.ndarray) else noise,
                weights=some.weights,
                about=None if about is None else about[rows],
                rounding=TF32_ROUNDING if session.tf32 else FLOAT32_ROUNDING,
            )
            found.put(rows, part)
            losses[rows] = equations["loss"]
            start += most
        return losses

    def _starts(self, targets: Targets, n_hops: int, seed: int) -> FloatArray:
        """Return the starting points of hops from N latents, [N * n_hops, d].

        See ``Recipe.hop_size``.
        """
        manifest = self._session.manifest
        prior, mean = manifest.prior, np.float32(manifest.prior.mean)
        starts = np.empty((len(targets), n_hops, manifest.latent_size), dtype=np.float32)
        for k, size in enumerate(np.linspace(*HOP_SIZES, n_hops, dtype=np.float32)):
            # From the highest restart number down: the recipe's own restarts count from the lowest.
            draws = self._session.draw(seed, targets.ids, MAX_RESTARTS - k)
            stay = 1 - size if isinstance(prior, Uniform) else np.sqrt(1 - size**2)
            starts[:, k] = mean + (stay * (targets.latents - mean) + size * (draws - mean))
        return starts.reshape(-1, manifest.latent_size)
