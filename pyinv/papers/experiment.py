"""A paper's experiment on one generator: its runs, and its part of the report."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import evaluation, recipes
from pyinv.papers import figures
from pyinv.papers.generators import Generator
from pyinv.papers.pixels import FloatArray
from pyinv.papers.plan import Planned, run_plan
from pyinv.papers.precise import OBJECTIVE_FORWARDS, PRECISE, cost_arrays, precise_recipe
from pyinv.papers.report import Cell, Paper, Ref, Report, literal
from pyinv.papers.request import Request
from pyinv.papers.run_cache import RunCache
from pyinv.recipes import Recipe
from pyinv.result import Inversion

__all__ = ["Experiment", "RecoveryExperiment", "run_experiments"]


class Experiment(ABC):
    """A paper's experiment on one generator.

    A subclass gives the runs as its ``plan``. After ``run_experiments``, it adds its part of the
    report. ``name`` is always an id within this part: in the report, the generator's key precedes
    it. Titles end with the generator's if the report has several.

    Args:
        generator: the generator.
        request: the reproduction's settings.

    Attributes:
        report: the report, once ``run_experiments`` has returned, as for the following.
        done: the inversions by run id.
        about: what the titles end with.
    """

    report: Report
    done: Mapping[str, Inversion]
    about: str
    _runs: RunCache

    def __init__(self, generator: Generator, request: Request) -> None:
        self.generator = generator
        self.request = request
        self.inverter = generator.inverter
        self.manifest = generator.manifest
        self.value_range = generator.manifest.value_range

    @cached_property
    @abstractmethod
    def plan(self) -> list[Planned]:
        """The runs, in order."""

    def id(self, name: str) -> str:
        """Return the id of a run, table or figure in the report."""
        return f"{self.generator.key}-{name}"

    def ref(self, name: str, array: str) -> Ref:
        """Return a reference to an array of a run."""
        return Ref(self.id(name), array)

    def planned(
        self, name: str, label: str, images: FloatArray, recipe: Recipe, **more: Any
    ) -> Planned:
        """Return a run with the generator's inverter; ``more`` as for ``Planned``."""
        label = f"{self.generator.title}: {label}"
        return Planned(self.id(name), label, self.inverter, images, recipe, **more)

    def add_run(self, name: str, label: str, **more: Any) -> None:
        """Add arrays to the report; ``more`` as for ``Report.add_run``."""
        self.report.add_run(self.id(name), f"{self.generator.title}: {label}", **more)

    def add_inversion(self, id: str, label: str, arrays: Mapping[str, Any]) -> None:
        """Add a finished run of the plan to the report, with these arrays."""
        recipe, facts = self.done[id].recipe, self._runs.facts(id)
        self.report.add_run(id, label, recipe=recipe, arrays=arrays, facts=facts)

    def cost_arrays(self, id: str) -> dict[str, NDArray[np.int64]]:
        """Return the costs of a finished run; see ``precise.cost_arrays``."""
        return cost_arrays(self.done[id], self.manifest.latent_size)

    def mean(self, name: str, array: str, published: float | None = None) -> Cell:
        """Return the mean of an array of a run."""
        return self.report.compute("mean", values=self.ref(name, array), published=published)

    def recovery_rate(
        self, name: str, array: str, threshold: float, published: float | None = None
    ) -> Cell:
        """Return the share of a run's errors that are below a threshold."""
        errors = self.ref(name, array)
        return self.report.compute(
            "recovery_rate", errors=errors, threshold=threshold, published=published
        )

    def cost_cells(
        self, name: str, recipe: Recipe, published_steps: int | None = None
    ) -> list[Cell | None]:
        """Return the means of a run's costs, in the order of ``COST_COLUMNS``.

        Args:
            name: the run, which has ``cost_arrays`` among its arrays.
            recipe: the run's recipe.
            published_steps: the paper's number of steps, for first-order methods.
        """
        theirs = None if published_steps is None else OBJECTIVE_FORWARDS * published_steps
        return [
            self.mean(name, "objective_evaluations", published_steps),
            self.mean(name, "normal_equations") if recipe.needs_normal_equations else None,
            self.mean(name, "forward_equivalents", theirs),
        ]

    def add_table(
        self, name: str, title: str, caption: str, *, row_title: str = "Method", **more: Any
    ) -> None:
        """Add a table; ``more`` as for ``Report.add_table``."""
        title = f"{title}{self.about}"
        self.report.add_table(self.id(name), title, caption, row_title=row_title, **more)

    def add_text(self, name: str, title: str, paragraphs: Sequence[str], **more: Any) -> None:
        """Add a section of text; ``more`` as for ``Report.add_text``."""
        self.report.add_text(self.id(name), f"{title}{self.about}", paragraphs, **more)

    def add_figure(
        self, name: str, title: str, caption: str, draw: Callable[[Path], Path], **more: Any
    ) -> None:
        """Add a figure; ``more`` as for ``Report.add_figure``."""
        self.report.add_figure(self.id(name), f"{title}{self.about}", caption, draw, **more)

    def draw_rows(
        self,
        name: str,
        title: str,
        caption: str,
        rows: Mapping[str, Any],
        *,
        alt: str,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        """Draw labelled rows of images and add them as a figure.

        Their ``value_range`` is by default the generator's.
        """
        value_range = value_range or self.value_range
        draw = partial(figures.image_rows, rows, value_range=value_range)
        self.add_figure(name, title, caption, draw, alt=alt)

    def draw_samples(self, id: str, title: str, count: int, *, seed: int) -> None:
        """Draw images of random latents and add them as a figure with this id in the report."""
        images = self.inverter.generate(self.inverter.sample(count, seed=seed))
        self.report.add_figure(
            id,
            title,
            f"{count} images of random latents. The generator: "
            f"{literal(self.generator.describe_origin())}.",
            partial(figures.image_grid, images, value_range=self.value_range),
            alt="A grid of generated images",
        )


class RecoveryExperiment(Experiment):
    """An experiment that recovers the latents of generated images, also with pyinv's recipes.

    Attributes:
        latents: float32 [N, *latent_shape], the true latents of the targets.
        images: float32 [N, C, H, W], the targets.
        adam: pyinv's recipe of first order, with at most the requested number of steps.
        precise: pyinv's precise recipe; None if the bundle does not support it.
        ours: both by name, as far as they are supported.
        but_precise: a restriction to insert after "all methods".
    """

    def __init__(self, generator: Generator, request: Request) -> None:
        super().__init__(generator, request)
        self.latents = self.inverter.sample(request.targets, seed=request.seed)
        self.images = self.inverter.generate(self.latents)
        adam = recipes.adam(self.manifest)
        self.adam = adam.replace(max_steps=min(adam.max_steps, request.max_steps))
        self.precise = precise_recipe(self.manifest)
        self.ours = {"adam": self.adam}
        if self.precise is not None:
            self.ours["precise"] = self.precise
        self.but_precise = "" if self.precise is None else f" but {PRECISE}"

    def final_arrays(self, planned: Planned) -> dict[str, Any]:
        """Return the final loss of a finished run and its costs."""
        on_pixels = planned.recipe.stages[-1].loss == "mse"
        name = "image_error" if on_pixels else "loss"
        return {name: self.done[planned.id].loss, **self.cost_arrays(planned.id)}

    def latent_errors(self, planned: Planned) -> dict[str, Any]:
        """Return the final and the lowest latent errors of a finished run."""
        inversion = self.done[planned.id]
        assert inversion.min_latent_error is not None
        return {
            "latent_error": evaluation.latent_error(planned.true_latents, inversion.latents),
            "min_latent_error": inversion.min_latent_error,
        }

    def describe_precise(self, recipe: Recipe, threshold: float) -> str:
        """Return a paragraph on the precise recipe's result, its methods and its assumptions.

        Args:
            recipe: the precise recipe.
            threshold: a latent counts as recovered if its final error is below this.
        """
        last = recipe.stages[-1]
        pixels = (
            "the pixels before the generator's last activation"
            if last.loss == "whitened"
            else "the pixels"
        )
        steps = (
            f"Levenberg-Marquardt steps (Levenberg 1944, Marquardt 1963) on {pixels}, with the "
            "exact Jacobian"
            if recipe.needs_normal_equations
            else f"L-BFGS steps (Liu & Nocedal 1989) on {pixels}"
        )
        return (
            f"{PRECISE}, which is not in the paper, recovers {{precise:.1%}} of the latents to a "
            f"final error below {threshold:g}, at a cost of {{cost:,.0f}} forward equivalents per "
            f"latent. It takes {steps}, starting from the prior's mean. If the loss stays above "
            f"{last.loss_tolerance:g}, it restarts from a random latent, at most "
            f"{recipe.restarts} times. It assumes that this exact generator made the image, up to "
            "rounding; it is not meant for noisy, compressed or real images."
        )

    def precise_cells(self, name: str, threshold: float) -> dict[str, Cell]:
        """Return the numbers in ``describe_precise`` from the precise recipe's run."""
        return {
            "precise": self.recovery_rate(name, "latent_error", threshold),
            "cost": self.mean(name, "forward_equivalents"),
        }


def run_experiments(
    experiments: Sequence[Experiment],
    paper: Paper,
    request: Request,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Execute the runs of all experiments that are not cached yet, and begin the report.

    Args:
        experiments: the paper's experiments.
        paper: the paper.
        request: the reproduction's settings.
        settings: those that the report states; None states all.

    Raises:
        KeyboardInterrupt: Ctrl-C; its message says how many runs are done.
    """
    runs = RunCache(request.folder)
    done = run_plan([planned for one in experiments for planned in one.plan], runs, request)
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    report = Report(
        request.folder,
        paper,
        settings=request.describe() if settings is None else settings,
        made={**runs.made_with(), **versions},
    )
    for one in experiments:
        one.report, one.done, one._runs = report, done, runs
        one.about = f", {one.generator.title}" if len(experiments) > 1 else ""
    return report
