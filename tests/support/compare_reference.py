"""Compare the C++ engine with its NumPy twin on the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pyinv import _core
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import LBFGS
from support import reference
from support.backends import Backend
from support.tolerances import assert_close


class Engine:
    """The engine's invert() with objectives loaded from files, on one runtime and device.

    Tolerances depend on ``device``.
    """

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend, self.device, self.folder = backend, backend.device, folder
        self._loaded: dict[Any, Any] = {}

    def load(self, objective: Any, **options: Any) -> Any:
        key = id(objective), *options.items()
        if key not in self._loaded:
            path = self.folder / f"{len(self._loaded)}.file"
            # Stored with the loaded objective, so that no other object gets its id.
            self._loaded[key] = self.backend.load(objective, path, **options), objective
        return self._loaded[key][0]

    def __call__(
        self,
        objectives: Any,
        recipe: Recipe,
        prior: Any,
        images: Any,
        *,
        use: Any = None,
        initial: Any = None,
        condition: Any = None,
        true_latents: Any = None,
        preconditioner: Any = None,
        target_ids: Any = None,
        seed: int = 0,
        lanes: int = 4,
        coupled: bool = False,
        trace_every: int = 0,
        poll_every: int = 0,
        progress: Any = None,
        threads: int = 1,
        most_at_once: int = 0,
    ) -> dict[str, Any]:
        ids = range(len(images)) if target_ids is None else target_ids
        options = {"threads": threads, "most_at_once": most_at_once}
        return _core.invert(
            objectives=[self.load(objective, **options) for objective in objectives],
            recipe=json.dumps(described(recipe.fit(prior), use)),
            prior=json.dumps(prior.describe()),
            images=images,
            initial=initial,
            condition=condition,
            true_latents=true_latents,
            preconditioner=preconditioner,
            target_ids=np.array(ids, dtype=np.uint64),
            seed=seed,
            lanes=lanes,
            coupled=coupled,
            trace_every=trace_every,
            poll_every=poll_every,
            progress=progress,
        )


def twin(
    objectives: Any, recipe: Recipe, prior: Any, images: Any, *, use: Any = None, **options: Any
) -> reference.Inversion:
    return reference.invert(
        objectives,
        described(recipe, use),
        prior.describe(),
        images,
        size=objectives[0].size,
        **{"lanes": 4, **options},
    )


def described(recipe: Recipe, use: Any) -> dict[str, Any]:
    """Describe a recipe with objective indices: ``use`` has one per stage; without it, all are 0.

    For Levenberg-Marquardt it is a pair with the index of the normal equations; by default (0, 1).
    """
    description = recipe.describe()
    for index, stage in enumerate(description["stages"]):
        if stage["solver"]["kind"] == "levenberg_marquardt":
            stage["objective"], stage["normal_equations"] = (0, 1) if use is None else use[index]
        else:
            stage["objective"] = 0 if use is None else use[index]
    return description


def assert_agree(
    result: dict[str, Any], expected: reference.Inversion, device: str, solver: str = ""
) -> None:
    """Tolerances also depend on ``solver``, such as ", quasi-newton"."""
    for name in ("status", "attempts", "steps", "normal_equations"):
        np.testing.assert_array_equal(result[name], getattr(expected, name), err_msg=name)
    assert_close(result["latents"], expected.latents, "latent" + solver, device=device)
    assert_close(result["loss"], expected.loss, "loss" + solver, device=device)
    if expected.trace is not None:
        assert_close(result["trace"], expected.trace, "loss" + solver, device=device)
    if expected.min_latent_error is not None:
        assert_close(
            result["min_latent_error"],
            expected.min_latent_error,
            "latent error" + solver,
            device=device,
        )


def both(
    engine: Engine, objectives: Any, recipe: Recipe, prior: Any, images: Any, **options: Any
) -> tuple[dict[str, Any], reference.Inversion]:
    """Check that the engine and the twin agree, and return both results.

    The run also computes each target's lowest error to an arbitrary latent.
    """
    true_latents = some_latents(len(images), objectives[0].size)
    arguments, options = (
        (objectives, recipe, prior, images),
        {"true_latents": true_latents, **options},
    )
    result = engine(*arguments, **options)
    # The twin does not have these options.
    for name in ("poll_every", "threads", "most_at_once"):
        options.pop(name, None)
    newton = any(isinstance(stage.solver, LBFGS) for stage in recipe.stages)
    expected = twin(*arguments, **options)
    assert_agree(result, expected, engine.device, ", quasi-newton" if newton else "")
    assert not result["cancelled"]
    return result, expected


def some_latents(count: int, size: int, *, reach: float = 1.5, seed: int = 9) -> Any:
    random = np.random.default_rng(seed)
    return random.uniform(-reach, reach, (count, size)).astype(np.float32)


def recipe(*stages: Stage, keep: str = "last", **changes: Any) -> Recipe:
    return Recipe("test", stages, keep=keep, **changes)
