"""Lipton & Tripathi 2017, "Precise recovery of latent vectors from GANs".

Tables 1 and 2 and Figures 1 and 2, on any generator with a uniform prior: gradient descent on the
latent without clipping, with standard clipping and with stochastic clipping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import _core, evaluation, recipes
from pyinv.bundle import Manifest
from pyinv.datasets import to_range
from pyinv.inverter import Inverter
from pyinv.papers import figures
from pyinv.papers.differences import add_shared_differences, made_with
from pyinv.papers.folder import open_folder
from pyinv.papers.generators import Generator, HeldOut, choose, obtain_generators
from pyinv.papers.plan import Planned, run_plan
from pyinv.papers.precise import (
    COST_COLUMNS,
    NOT_IN_PAPER,
    PRECISE,
    cost_arrays,
    cost_cells,
    describe_costs,
    describe_precise,
    precise_recipe,
    reconstruct_recipe,
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Ref, Report, Row, literal
from pyinv.papers.request import Request, check_plots
from pyinv.papers.run_cache import RunCache
from pyinv.priors import Uniform
from pyinv.recipes import Recipe
from pyinv.result import Inversion
from pyinv.solvers import GradientDescent, StepDecay

__all__ = ["PAPER", "clipping_recipe", "reproduce"]

FloatArray = NDArray[np.float32]

PAPER = Paper(
    name="lipton",
    title="Precise recovery of latent vectors from generative adversarial networks",
    authors="Zachary C. Lipton and Subarna Tripathi",
    year=2017,
    venue="ICLR 2017 workshop; arXiv:1702.04782",
)

CLIPPINGS = {
    "none": "No clipping",
    "standard": "Standard clipping",
    "stochastic": "Stochastic clipping",
}
DEFAULT = "pyinv's default recipe"
RECONSTRUCT = "pyinv's reconstruct recipe"

THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)
TABLE_1 = {
    "none": (0.98, 0.986, 0.998, 1.0),
    "standard": (0.984, 0.99, 1.0, 1.0),
    "stochastic": (1.0, 1.0, 1.0, 1.0),
}
TABLE_2 = {"none": 2.03e-4, "standard": 1.36e-4, "stochastic": 4.94e-5}
TABLE_2_BASELINE = 0.0815

# The authors' code: 80,000 steps at a learning rate of 1, halved after 50,000.
PAPER_STEPS = 80_000
PRINTED_STEPS = 100_000  # in the paper
PAPER_HALVED_AFTER = 50_000
PAPER_LEARNING_RATE = 1.0
# Plain gradient descent overshoots at larger rates. Of 1, 5, 10, 20 and 40, over 400 steps on 16
# images, 5 gave the lowest loss, both on a generator of 32x32 faces and on pyinv's digits. 10 gave
# the same loss or a higher one, 20 at least ten times as much.
LARGEST_LEARNING_RATE = 5.0

# Means over 50 images or over 4,950 pairs of latents are stable enough; larger samples would
# dominate the run time.
UNSEEN_IMAGES = 4
MOST_STARTS = 100
MOST_NOISY = 50
# The range of the authors' code.
NOISE_VARIANCES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
SHOWN = 8
EARLY_STEPS = 100


def clipping_recipe(
    manifest: Manifest, clipping: str, steps: int, learning_rate: float | None = None
) -> Recipe:
    """Return the paper's method for a given number of steps.

    The learning rate is halved after five eighths of the steps, as in the authors' code. In a run
    of more than 80,000 steps, it is halved after every 50,000.

    Args:
        manifest: the generator's manifest.
        clipping: "none", "standard" or "stochastic".
        steps: number of steps; 80,000 in the authors' code.
        learning_rate: initial learning rate. None uses the authors' 1.0, or more in a shorter run,
            so that learning rate times steps stays the same, up to a rate of 5. These rates are for
            pixels in [-1, 1]; for another range, they are divided by the factor by which the range
            scales the squared error.

    Source: Lipton & Tripathi 2017, section 2; see ``pyinv.recipes.lipton``.
    """
    share = min(steps / PAPER_STEPS, 1.0)
    if learning_rate is None:
        learning_rate = min(PAPER_LEARNING_RATE / share, LARGEST_LEARNING_RATE)
        learning_rate /= _pixel_scale(manifest.value_range) ** 2
    return recipes.lipton(manifest, clipping).replace(
        max_steps=steps,
        learning_rate=learning_rate,
        schedule=StepDecay(every=max(round(PAPER_HALVED_AFTER * share), 1), factor=0.5),
    )


def _pixel_scale(value_range: tuple[float, float]) -> float:
    """Return the factor from pixel differences in [-1, 1], the paper's range, to another range."""
    low, high = value_range
    return (high - low) / 2


def reproduce(request: Request) -> Path:
    """Reproduce the paper's tables and figures, and write a report.

    Args:
        request: generators with a uniform prior; without any, one is trained per dataset with the
            configuration "lipton-32". Table 2's unseen images are the test images of the dataset
            that the generator was trained on. Without that dataset, they are means of two generated
            images. The paper has 1,000 targets and 100,000 steps, the authors' code 80,000 steps.
            For the learning rate, see ``clipping_recipe``.

    Returns:
        the path of report.html. numbers.json and the figures are beside it.

    Raises:
        InputError: bad data, or a generator with another prior.
        BundleError: a bundle that is missing or damaged.
        OutputError: the folder cannot be written to.
        DependencyError: torch, for training, or Matplotlib is missing.
        KeyboardInterrupt: Ctrl-C; its message says how many runs are done. Another call with the
            same request resumes.

    Source: Lipton & Tripathi 2017; the authors' code for the learning rate, the number of steps,
    and what counts as recovered.
    """
    check_plots()
    open_folder(request.folder)
    opened = obtain_generators(
        request,
        paper="Lipton & Tripathi",
        configuration=lambda data: "lipton-32",
        priors=(Uniform,),
    )
    held_out = HeldOut(request, needed=False)
    experiments = [_Experiment(generator, request, held_out) for generator in opened]
    plan = [planned for experiment in experiments for planned in experiment.plan]
    runs = RunCache(request.folder)
    done = run_plan(plan, runs, request)
    report = Report(request.folder, PAPER, settings=request.describe(), made=made_with(runs))
    _add_differences(report, request, experiments)
    for experiment in experiments:
        experiment.report(report, runs, done, alone=len(experiments) == 1)
    return report.write()


class _Experiment:
    """The tables and figures of one generator."""

    def __init__(self, generator: Generator, request: Request, held_out: HeldOut) -> None:
        self.generator = generator
        self.inverter = generator.inverter
        self.request = request
        self.recipes = {
            clipping: clipping_recipe(
                generator.manifest, clipping, request.max_steps, request.learning_rate
            )
            for clipping in CLIPPINGS
        }
        default = recipes.default(generator.manifest)
        self.default = default.replace(max_steps=min(default.max_steps, request.max_steps))
        self.precise = precise_recipe(generator.manifest)
        self.reconstruct = reconstruct_recipe(generator.manifest)
        self.latents = self.inverter.sample(request.targets, seed=request.seed)
        self.images = self.inverter.generate(self.latents)
        self.unseen, self.unseen_source = self._unseen(held_out)
        self.starts = min(max(request.targets // UNSEEN_IMAGES, 2), MOST_STARTS)
        self.shown = min(SHOWN, request.targets)
        self.noisy = min(max(request.targets // 5, 2), MOST_NOISY)
        self.early = min(EARLY_STEPS, max(request.max_steps // 2, 1))

    @property
    def _ours(self) -> dict[str, tuple[str, Recipe]]:
        """pyinv's own methods that this bundle supports, in Table 1's order."""
        ours = {"default": (DEFAULT, self.default)}
        if self.precise is not None:
            ours["precise"] = (PRECISE, self.precise)
        return ours

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, the paper's main result first."""
        stochastic = self.recipes["stochastic"]
        noisy = self._noisy_images()
        return [
            *(
                self._planned(f"table-1-{clipping}", CLIPPINGS[clipping], self.images, recipe, True)
                for clipping, recipe in self.recipes.items()
            ),
            *(
                self._planned(f"table-1-{method}", name, self.images, recipe, True)
                for method, (name, recipe) in self._ours.items()
            ),
            self._planned(
                "figure-1-early",
                f"stochastic clipping, {self.early} steps",
                self.images[: self.shown],
                stochastic.replace(max_steps=self.early),
                True,
            ),
            *(
                self._planned(
                    f"table-2-{clipping}",
                    f"unseen images, {CLIPPINGS[clipping].lower()}",
                    np.repeat(self.unseen, self.starts, axis=0),
                    recipe,
                )
                for clipping, recipe in self.recipes.items()
            ),
            *(
                self._planned(
                    "table-2-reconstruct",
                    f"unseen images, {RECONSTRUCT}",
                    np.repeat(self.unseen, self.starts, axis=0),
                    recipe,
                )
                for recipe in (self.reconstruct,)
                if recipe is not None
            ),
            *(
                self._planned(
                    f"figure-2-{clipping}", f"noise, {CLIPPINGS[clipping].lower()}", noisy, recipe
                )
                for clipping, recipe in self.recipes.items()
            ),
        ]

    def _planned(
        self, id: str, label: str, images: FloatArray, recipe: Recipe, known: bool = False
    ) -> Planned:
        return Planned(
            id=f"{self.generator.key}-{id}",
            label=f"{self.generator.title}: {label}",
            inverter=self.inverter,
            images=images,
            recipe=recipe,
            true_latents=self.latents[: len(images)] if known else None,
        )

    def _unseen(self, held_out: HeldOut) -> tuple[NDArray[Any], str]:
        """Return images that the generator did not make, and a description of them."""
        manifest = self.generator.manifest
        dataset = held_out.of(self.generator)
        if dataset is None or len(dataset) < UNSEEN_IMAGES:
            if self.request.data:
                self.request.say(
                    f"{self.generator.title}: none of the given datasets is the one it was trained "
                    f"on and has {UNSEEN_IMAGES} test images; Table 2 uses means of two generated "
                    "images"
                )
            pairs = self.inverter.generate(
                self.inverter.sample(2 * UNSEEN_IMAGES, seed=self.request.seed + 1)
            )
            return (pairs[::2] + pairs[1::2]) / 2, "each the mean of two generated images"
        chosen = np.sort(choose(dataset, UNSEEN_IMAGES, seed=self.request.seed))
        images = to_range(dataset.images[chosen], manifest.value_range)
        return images, f"test images of {dataset.name}"

    def _noisy_images(self) -> FloatArray:
        """Return some targets with noise of each variance, [variances * noisy, C, H, W]."""
        value_range = self.generator.manifest.value_range
        return np.concatenate(
            [
                evaluation.add_noise(
                    self.images[: self.noisy],
                    # The paper's variances are for pixels in [-1, 1].
                    variance * _pixel_scale(value_range) ** 2,
                    seed=self.request.seed,
                    value_range=value_range,
                )
                for variance in NOISE_VARIANCES
            ]
        )

    def report(
        self, report: Report, runs: RunCache, done: Mapping[str, Inversion], *, alone: bool
    ) -> None:
        """Add the tables and figures; titles name the generator unless it is ``alone``."""
        about = "" if alone else f", {self.generator.title}"
        self._add_runs(report, runs, done)
        self._add_result(report, about)
        self._add_table_1(report, about)
        self._add_costs(report, about)
        self._add_table_2(report, about)
        self._add_figure_1(report, done, about)
        self._add_figure_2(report, about)

    def _id(self, name: str) -> str:
        return f"{self.generator.key}-{name}"

    def _add_runs(self, report: Report, runs: RunCache, done: Mapping[str, Inversion]) -> None:
        """Add the arrays that the report's numbers are computed from."""
        for planned in self.plan:
            inversion = done[planned.id]
            on_pixels = planned.recipe.stages[-1].loss == "mse"
            arrays: dict[str, Any] = {"image_error" if on_pixels else "loss": inversion.loss}
            arrays |= cost_arrays(inversion, self.generator.manifest.latent_size)
            if planned.true_latents is not None:
                assert inversion.min_latent_error is not None
                arrays["latent_error"] = evaluation.latent_error(
                    planned.true_latents, inversion.latents
                )
                arrays["min_latent_error"] = inversion.min_latent_error
            latents = inversion.latents.reshape(len(inversion), -1)
            if planned.id.startswith(self._id("table-2")):
                for image, rows in enumerate(self._blocks(UNSEEN_IMAGES, self.starts)):
                    arrays[f"latents of image {image + 1}"] = latents[rows]
            if planned.id.startswith(self._id("figure-2")):
                truth = self.latents[: self.noisy]
                blocks = self._blocks(len(NOISE_VARIANCES), self.noisy)
                for variance, rows in zip(NOISE_VARIANCES, blocks, strict=True):
                    errors = evaluation.latent_error(truth, inversion.latents[rows])
                    arrays[f"latent error at noise variance {variance:g}"] = errors
            report.add_run(
                planned.id,
                planned.label,
                recipe=inversion.recipe,
                arrays=arrays,
                facts=runs.facts(planned.id),
            )
        baseline = self.inverter.sample(self.starts, seed=self.request.seed + 2)
        report.add_run(
            self._id("table-2-baseline"),
            f"{self.generator.title}: latents drawn from the prior",
            arrays={"latents": baseline.reshape(self.starts, -1)},
        )

    @staticmethod
    def _blocks(count: int, size: int) -> list[slice]:
        return [slice(start, start + size) for start in range(0, count * size, size)]

    def _recovered(self, report: Report, method: str, threshold: float, array: str) -> Cell:
        published = None
        # The authors' code counts a latent as recovered at any step.
        if method in TABLE_1 and array == "min_latent_error":
            published = TABLE_1[method][THRESHOLDS.index(threshold)]
        return report.compute(
            "recovery_rate",
            errors=Ref(self._id(f"table-1-{method}"), array),
            threshold=threshold,
            published=published,
        )

    def _add_result(self, report: Report, about: str) -> None:
        strictest = THRESHOLDS[0]
        cells = {
            method: self._recovered(report, method, strictest, "min_latent_error")
            for method in (*CLIPPINGS, "default")
        }
        cells["default_end"] = self._recovered(report, "default", strictest, "latent_error")
        paragraphs = [
            f"Share of {self.request.targets} latents whose mean squared error fell below "
            f"{strictest:g} at some step: {{none:.1%}} without clipping, {{standard:.1%}} with "
            "standard clipping and {stochastic:.1%} with stochastic clipping. "
            f"{DEFAULT}: {{default:.1%}} at some step, {{default_end:.1%}} at the end."
        ]
        if self.precise is not None:
            run_id = self._id("table-1-precise")
            text, text_cells = describe_precise(report, run_id, self.precise, threshold=strictest)
            paragraphs.append(text)
            cells |= text_cells
        report.add_text(self._id("result"), f"Result{about}", paragraphs, cells=cells)

    def _add_table_1(self, report: Report, about: str) -> None:
        group = "share recovered, latent error below"
        columns = [
            *(
                Column(f"{threshold:g}", "{:.1f}", percent=True, group=group, best="highest")
                for threshold in THRESHOLDS
            ),
            Column("mean latent error", "{:.3g}", best="lowest"),
        ]
        rows = []
        for array, heading in (
            ("min_latent_error", "at any step, as the authors' code counts"),
            ("latent_error", "after the last step"),
        ):
            ours = {method: name for method, (name, _) in self._ours.items()}
            for method, name in (CLIPPINGS | ours).items():
                shares = [self._recovered(report, method, one, array) for one in THRESHOLDS]
                error = report.compute("mean", values=Ref(self._id(f"table-1-{method}"), array))
                rows.append(
                    Row(
                        name,
                        [*shares, error],
                        group=heading,
                        emphasis=method == "stochastic",
                        tag=NOT_IN_PAPER if method in ours else "",
                    )
                )
            if self.precise is None:
                first = array == "min_latent_error"
                why = why_not_run(self.generator.manifest) if first else "not run, see above"
                rows.append(Row(PRECISE, group=heading, tag=NOT_IN_PAPER, text=why))
        but = "" if self.precise is None else f" but {PRECISE}"
        report.add_table(
            self._id("table-1"),
            f"Table 1: Latents recovered{about}",
            f"{self.request.targets} generated images, {self.request.max_steps:,} steps. The "
            f"latent error is the mean squared error per component. {DEFAULT} takes at most "
            f"{self.default.max_steps:,} steps. All methods{but} start from the same latents.",
            columns=columns,
            rows=rows,
            row_title="Method",
        )

    def _add_costs(self, report: Report, about: str) -> None:
        """Add the cost of each method of Table 1."""
        threshold = THRESHOLDS[0]
        rows = [
            Row(
                name,
                [
                    self._recovered(report, clipping, threshold, "min_latent_error"),
                    *cost_cells(
                        report,
                        self._id(f"table-1-{clipping}"),
                        self.recipes[clipping],
                        published_steps=PRINTED_STEPS,
                    ),
                ],
            )
            for clipping, name in CLIPPINGS.items()
        ]
        rows += [
            Row(
                name,
                [
                    self._recovered(report, method, threshold, "min_latent_error"),
                    *cost_cells(report, self._id(f"table-1-{method}"), recipe),
                ],
                tag=NOT_IN_PAPER,
            )
            for method, (name, recipe) in self._ours.items()
        ]
        report.add_table(
            self._id("costs"),
            f"Cost per latent{about}",
            "Means over the latents of Table 1. "
            f"{describe_costs(self.generator.manifest.latent_size)} The published numbers are for "
            f"the paper's {PRINTED_STEPS:,} steps; the authors' code takes {PAPER_STEPS:,}.",
            columns=[
                Column(
                    f"{threshold:g}",
                    "{:.1f}",
                    percent=True,
                    group="error at any step below",
                    best="highest",
                ),
                *COST_COLUMNS,
            ],
            rows=rows,
            row_title="Method",
        )

    def _add_table_2(self, report: Report, about: str) -> None:
        ours = [] if self.reconstruct is None else ["reconstruct"]
        methods = [*CLIPPINGS, *ours]
        images = range(1, UNSEEN_IMAGES + 1)

        def spread(method: str, image: int) -> Cell:
            latents = Ref(self._id(f"table-2-{method}"), f"latents of image {image}")
            return report.compute("pairwise_distance", latents=latents)

        cells = {(method, image): spread(method, image) for method in methods for image in images}
        means = {
            method: report.compute(
                "mean",
                values=[cells[method, image] for image in images],
                published=TABLE_2.get(method),
            )
            for method in methods
        }
        means["baseline"] = report.compute(
            "pairwise_distance",
            latents=Ref(self._id("table-2-baseline"), "latents"),
            published=TABLE_2_BASELINE,
        )
        columns = {
            "none": Column("None", "{:.6f}"),
            "standard": Column("Standard", "{:.6f}"),
            "stochastic": Column("Stochastic", "{:.6f}"),
            "baseline": Column("Baseline", "{:.6f}"),
            **{name: Column(name, "{:.6f}", group=NOT_IN_PAPER) for name in ours},
        }
        rows = [Row(f"mean of {UNSEEN_IMAGES} images", [means[name] for name in columns], True)]
        rows += [
            Row(f"image {image}", [cells.get((name, image)) for name in columns])
            for image in images
        ]
        errors = {
            method: report.compute("mean", values=Ref(self._id(f"table-2-{method}"), "image_error"))
            for method in methods
        }
        more = ""
        if ours:
            more = (
                f" {RECONSTRUCT}, which is meant for images that no latent makes exactly, has "
                "{reconstruct:.3g}. It takes Levenberg-Marquardt steps on the pixels, here from "
                f"the same starts and without restarts. {PRECISE} is not meant for such images."
            )
        report.add_table(
            self._id("table-2"),
            f"Table 2: Distance between latents recovered from one unseen image{about}",
            "Mean distance between two latents that were recovered for one image from different "
            f"starts, divided by the number of components; {self.starts} starts per image. The "
            f"images: {literal(self.unseen_source)}. The baseline is the distance between random "
            "latents. The mean squared pixel error of the reconstructions is {none:.3g} without "
            "clipping, {standard:.3g} with standard clipping and {stochastic:.3g} with stochastic "
            f"clipping.{more}",
            columns=list(columns.values()),
            rows=rows,
            row_title="Image",
            cells=errors,
        )

    def _add_figure_1(self, report: Report, done: Mapping[str, Inversion], about: str) -> None:
        first = starting_latents(self.inverter, self.shown, seed=self.request.seed)
        rows = {
            "target": self.images[: self.shown],
            "after initialisation": self.inverter.generate(first),
            f"after {self.early} steps": done[self._id("figure-1-early")].images,
            f"after {self.request.max_steps:,} steps": self.inverter.generate(
                done[self._id("table-1-stochastic")].latents[: self.shown]
            ),
        }
        path = report.folder / "figures" / f"{self._id('figure-1')}.png"
        figures.image_rows(rows, path, value_range=self.generator.manifest.value_range)
        report.add_figure(
            self._id("figure-1"),
            f"Figure 1: Reconstructions during a run{about}",
            "Generated targets and their reconstructions with stochastic clipping. The paper shows "
            "them after initialisation, after 100 steps and after 20,000 steps.",
            path,
            alt="Rows of images: targets, and their reconstructions at three stages of a run",
        )

    def _add_figure_2(self, report: Report, about: str) -> None:
        cells = {
            clipping: [
                report.compute(
                    "mean",
                    values=Ref(
                        self._id(f"figure-2-{clipping}"),
                        f"latent error at noise variance {variance:g}",
                    ),
                )
                for variance in NOISE_VARIANCES
            ]
            for clipping in CLIPPINGS
        }
        path = report.folder / "figures" / f"{self._id('figure-2')}.png"
        figures.curves(
            [
                figures.Line(name, NOISE_VARIANCES, [cell.value for cell in cells[clipping]])
                for clipping, name in CLIPPINGS.items()
            ],
            path,
            x_label="variance of the pixel noise",
            y_label="mean latent error",
            x_log=True,
            y_log=True,
        )
        report.add_figure(
            self._id("figure-2"),
            f"Figure 2: Latent error under noise{about}",
            f"Gaussian noise is added to {self.noisy} of the targets, which are then clipped to "
            "the generator's value range, as in the authors' code. The paper has a plot without "
            "numbers, in which the error grows in proportion to the noise and is lowest with "
            "stochastic clipping.",
            path,
            alt="Mean latent error against the variance of the noise, one line per clipping",
        )
        report.add_table(
            self._id("figure-2-numbers"),
            f"Numbers for Figure 2{about}",
            "Mean latent error after the last step.",
            columns=[
                Column(f"{variance:g}", "{:.3g}", group="variance of the noise", best="lowest")
                for variance in NOISE_VARIANCES
            ],
            rows=[Row(name, cells[clipping]) for clipping, name in CLIPPINGS.items()],
            row_title="Method",
        )


def starting_latents(inverter: Inverter, count: int, *, seed: int) -> FloatArray:
    """Return the initial latents of ``invert``'s first targets for this seed."""
    manifest = inverter.manifest
    prior = json.dumps(manifest.prior.describe())
    ids = np.arange(count, dtype=np.uint64)
    latents: FloatArray = _core.draw_initial(prior, seed, ids, 0, manifest.latent_size)
    return latents.reshape(count, *manifest.latent_shape)


def _add_differences(report: Report, request: Request, experiments: Sequence[_Experiment]) -> None:
    (stage,) = experiments[0].recipes["stochastic"].stages
    solver = stage.solver
    assert isinstance(solver, GradientDescent)
    assert isinstance(solver.schedule, StepDecay)
    rate, halved = solver.learning_rate, solver.schedule.every
    scale = _pixel_scale(experiments[0].generator.manifest.value_range)
    flow = scale**2 * rate * sum(0.5 ** (step // halved) for step in range(request.max_steps))
    theirs = PAPER_HALVED_AFTER + (PAPER_STEPS - PAPER_HALVED_AFTER) / 2
    report.difference("Targets", "1,000 generated images", f"{request.targets:,} generated images")
    report.difference("Steps", "100,000; 80,000 in the authors' code", f"{request.max_steps:,}")
    report.difference(
        "Learning rate",
        "attenuated over time; in the authors' code 1.0, halved after 50,000 steps",
        f"{rate:g}, halved after {halved:,} steps; summed over all steps, for pixels in [-1, 1], "
        f"the learning rate is {100 * flow / theirs:.0f} % of the authors'",
    )
    report.difference(
        "What counts as recovered",
        "in the authors' code, a latent whose error is below the threshold at any step",
        "both: at any step, and after the last step",
    )
    report.difference(
        "Table 2",
        "one unseen image, 1,000 latents",
        f"{UNSEEN_IMAGES} images, {experiments[0].starts} latents each: "
        + "; ".join(dict.fromkeys(one.unseen_source for one in experiments)),
    )
    report.difference(
        "Figure 2", "number of images not given", f"{experiments[0].noisy} images per variance"
    )
    add_shared_differences(
        report,
        [experiment.generator for experiment in experiments],
        training="a DCGAN as re-implemented by Amos (2016); its data is not named",
        image="not given",
        batch_norm="in the authors' code, batch statistics, for targets and estimates alike",
        draws="TensorFlow's; one per component that leaves the range",
        seed=request.seed,
    )
