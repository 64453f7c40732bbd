"""Lipton & Tripathi 2017, "Precise recovery of latent vectors from GANs".

Tables 1 and 2 and Figures 1 and 2, on any generator with a uniform prior: gradient descent on the
latent without clipping, with standard clipping and with stochastic clipping.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import _core, evaluation, recipes
from pyinv.bundle import Manifest
from pyinv.datasets import to_range
from pyinv.inverter import Inverter
from pyinv.papers import figures
from pyinv.papers.differences import add_shared_differences, joined
from pyinv.papers.experiment import RecoveryExperiment, run_experiments
from pyinv.papers.generators import Generator, GivenData, choose, obtain_generators
from pyinv.papers.pixels import FloatArray
from pyinv.papers.plan import Planned
from pyinv.papers.precise import (
    ADAM,
    COST_COLUMNS,
    NOT_IN_PAPER,
    PRECISE,
    describe_costs,
    reconstruct_recipe,
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Row, literal
from pyinv.papers.request import Request, check_plots
from pyinv.priors import Uniform
from pyinv.recipes import Recipe
from pyinv.solvers import GradientDescent, StepDecay

__all__ = ["PAPER", "clipping_recipe", "reproduce"]

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
RECONSTRUCT = "pyinv's reconstruct recipe"
NAMES = {**CLIPPINGS, "adam": ADAM, "precise": PRECISE, "reconstruct": RECONSTRUCT}

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
    opened = obtain_generators(
        request,
        paper="Lipton & Tripathi",
        configuration=lambda data: "lipton-32",
        priors=(Uniform,),
    )
    data = GivenData(request)
    experiments = [_Experiment(generator, request, data) for generator in opened]
    report = run_experiments(experiments, PAPER, request)
    _add_differences(experiments)
    for experiment in experiments:
        experiment.add_results()
    return report.write()


class _Experiment(RecoveryExperiment):
    """The tables and figures of one generator."""

    def __init__(self, generator: Generator, request: Request, data: GivenData) -> None:
        super().__init__(generator, request)
        clippings = {
            clipping: clipping_recipe(
                self.manifest, clipping, request.max_steps, request.learning_rate
            )
            for clipping in CLIPPINGS
        }
        reconstruct = reconstruct_recipe(self.manifest)
        # By table or figure and, in its order, method.
        self.recipes: dict[str, dict[str, Recipe]] = {
            "table-1": clippings | self.ours,
            "table-2": clippings | ({} if reconstruct is None else {"reconstruct": reconstruct}),
            "figure-2": clippings,
        }
        self.unseen, self.unseen_source = self._unseen(data)
        self.starts = min(max(request.targets // UNSEEN_IMAGES, 2), MOST_STARTS)
        self.shown = min(SHOWN, request.targets)
        self.noisy = min(max(request.targets // 5, 2), MOST_NOISY)
        self.early = min(EARLY_STEPS, max(request.max_steps // 2, 1))

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, the paper's main result first."""
        runs = [
            self.planned(
                f"table-1-{method}", NAMES[method], self.images, recipe, true_latents=self.latents
            )
            for method, recipe in self.recipes["table-1"].items()
        ]
        runs.append(
            self.planned(
                "figure-1-early",
                f"stochastic clipping, {self.early} steps",
                self.images[: self.shown],
                self.recipes["table-1"]["stochastic"].replace(max_steps=self.early),
                true_latents=self.latents[: self.shown],
            )
        )
        unseen = np.repeat(self.unseen, self.starts, axis=0)
        noisy = self._noisy_images()
        for name, what, images in (
            ("table-2", "unseen images", unseen),
            ("figure-2", "noise", noisy),
        ):
            runs += [
                self.planned(f"{name}-{method}", f"{what}, {NAMES[method].lower()}", images, recipe)
                for method, recipe in self.recipes[name].items()
            ]
        return runs

    def _unseen(self, data: GivenData) -> tuple[NDArray[Any], str]:
        """Return images that the generator did not make, and a description of them."""
        dataset = data.of(self.generator)
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
        images = to_range(dataset.images[chosen], self.value_range)
        return images, f"test images of {dataset.name}"

    def _noisy_images(self) -> FloatArray:
        """Return some targets with noise of each variance, [variances * noisy, C, H, W]."""
        return np.concatenate(
            [
                evaluation.add_noise(
                    self.images[: self.noisy],
                    # The paper's variances are for pixels in [-1, 1].
                    variance * _pixel_scale(self.value_range) ** 2,
                    seed=self.request.seed,
                    value_range=self.value_range,
                )
                for variance in NOISE_VARIANCES
            ]
        )

    def add_results(self) -> None:
        """Add the tables and figures to the report."""
        self._add_runs()
        self._add_result()
        self._add_table_1()
        self._add_costs()
        self._add_table_2()
        self._add_figure_1()
        self._add_figure_2()

    def _add_runs(self) -> None:
        """Add the arrays that the report's numbers are computed from."""
        for planned in self.plan:
            latents = self.done[planned.id].latents
            arrays = self.final_arrays(planned)
            if planned.true_latents is not None:
                arrays |= self.latent_errors(planned)
            if planned.id.startswith(self.id("table-2")):
                for image, found in enumerate(np.split(latents, UNSEEN_IMAGES), start=1):
                    arrays[f"latents of image {image}"] = found.reshape(self.starts, -1)
            if planned.id.startswith(self.id("figure-2")):
                truth = self.latents[: self.noisy]
                parts = np.split(latents, len(NOISE_VARIANCES))
                for variance, found in zip(NOISE_VARIANCES, parts, strict=True):
                    errors = evaluation.latent_error(truth, found)
                    arrays[f"latent error at noise variance {variance:g}"] = errors
            self.add_inversion(planned.id, planned.label, arrays)
        baseline = self.inverter.sample(self.starts, seed=self.request.seed + 2)
        self.add_run(
            "table-2-baseline",
            "latents drawn from the prior",
            arrays={"latents": baseline.reshape(self.starts, -1)},
        )

    def _recovered(self, method: str, threshold: float, array: str) -> Cell:
        published = None
        # The authors' code counts a latent as recovered at any step.
        if method in TABLE_1 and array == "min_latent_error":
            published = TABLE_1[method][THRESHOLDS.index(threshold)]
        return self.recovery_rate(f"table-1-{method}", array, threshold, published)

    def _add_result(self) -> None:
        strictest = THRESHOLDS[0]
        cells = {
            method: self._recovered(method, strictest, "min_latent_error")
            for method in (*CLIPPINGS, "adam")
        }
        cells["adam_end"] = self._recovered("adam", strictest, "latent_error")
        paragraphs = [
            f"Share of {self.request.targets} latents whose mean squared error fell below "
            f"{strictest:g} at some step: {{none:.1%}} without clipping, {{standard:.1%}} with "
            "standard clipping and {stochastic:.1%} with stochastic clipping. "
            f"{ADAM}: {{adam:.1%}} at some step, {{adam_end:.1%}} at the end."
        ]
        if self.precise is not None:
            paragraphs.append(self.describe_precise(self.precise, strictest))
            cells |= self.precise_cells("table-1-precise", strictest)
        self.add_text("result", "Result", paragraphs, cells=cells)

    def _add_table_1(self) -> None:
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
            rows += [
                Row(
                    NAMES[method],
                    [
                        *(self._recovered(method, one, array) for one in THRESHOLDS),
                        self.mean(f"table-1-{method}", array),
                    ],
                    group=heading,
                    emphasis=method == "stochastic",
                    tag=NOT_IN_PAPER if method in self.ours else "",
                )
                for method in self.recipes["table-1"]
            ]
            if self.precise is None:
                first = array == "min_latent_error"
                why = why_not_run(self.manifest) if first else "not run, see above"
                rows.append(Row(PRECISE, group=heading, tag=NOT_IN_PAPER, text=why))
        self.add_table(
            "table-1",
            "Table 1: Latents recovered",
            f"{self.request.targets} generated images, {self.request.max_steps:,} steps. The "
            f"latent error is the mean squared error per component. {ADAM} takes at most "
            f"{self.adam.max_steps:,} steps. All methods{self.but_precise} start from the same "
            "latents.",
            columns=columns,
            rows=rows,
        )

    def _add_costs(self) -> None:
        """Add the cost of each method of Table 1."""
        threshold = THRESHOLDS[0]
        group = "error at any step below"
        recovered = Column(f"{threshold:g}", "{:.1f}", percent=True, group=group, best="highest")
        self.add_table(
            "costs",
            "Cost per latent",
            f"Means over the latents of Table 1. {describe_costs(self.manifest.latent_size)} The "
            f"published numbers are for the paper's {PRINTED_STEPS:,} steps; the authors' code "
            f"takes {PAPER_STEPS:,}.",
            columns=[recovered, *COST_COLUMNS],
            rows=[
                Row(
                    NAMES[method],
                    [
                        self._recovered(method, threshold, "min_latent_error"),
                        *self.cost_cells(
                            f"table-1-{method}",
                            recipe,
                            PRINTED_STEPS if method in CLIPPINGS else None,
                        ),
                    ],
                    tag=NOT_IN_PAPER if method in self.ours else "",
                )
                for method, recipe in self.recipes["table-1"].items()
            ],
        )

    def _add_table_2(self) -> None:
        methods = list(self.recipes["table-2"])
        ours = [method for method in methods if method not in CLIPPINGS]
        images = range(1, UNSEEN_IMAGES + 1)

        def distance(name: str, array: str, published: float | None = None) -> Cell:
            latents = self.ref(f"table-2-{name}", array)
            return self.report.compute("pairwise_distance", latents=latents, published=published)

        cells = {
            (method, image): distance(method, f"latents of image {image}")
            for method in methods
            for image in images
        }
        means = {
            method: self.report.compute(
                "mean",
                values=[cells[method, image] for image in images],
                published=TABLE_2.get(method),
            )
            for method in methods
        }
        means["baseline"] = distance("baseline", "latents", TABLE_2_BASELINE)
        theirs = ("none", "standard", "stochastic", "baseline")
        columns = {name: Column(name.capitalize(), "{:.6f}") for name in theirs}
        columns |= {name: Column(name, "{:.6f}", group=NOT_IN_PAPER) for name in ours}
        rows = [Row(f"mean of {UNSEEN_IMAGES} images", [means[name] for name in columns], True)]
        rows += [
            Row(f"image {image}", [cells.get((name, image)) for name in columns])
            for image in images
        ]
        more = ""
        if ours:
            more = (
                f" {RECONSTRUCT}, which is meant for images that no latent makes exactly, has "
                "{reconstruct:.3g}. It takes Levenberg-Marquardt steps on the pixels, here from "
                f"the same starts and without restarts. {PRECISE} is not meant for such images."
            )
        self.add_table(
            "table-2",
            "Table 2: Distance between latents recovered from one unseen image",
            "Mean distance between two latents that were recovered for one image from different "
            f"starts, divided by the number of components; {self.starts} starts per image. The "
            f"images: {literal(self.unseen_source)}. The baseline is the distance between random "
            "latents. The mean squared pixel error of the reconstructions is {none:.3g} without "
            "clipping, {standard:.3g} with standard clipping and {stochastic:.3g} with stochastic "
            f"clipping.{more}",
            columns=list(columns.values()),
            rows=rows,
            row_title="Image",
            cells={method: self.mean(f"table-2-{method}", "image_error") for method in methods},
        )

    def _add_figure_1(self) -> None:
        first = starting_latents(self.inverter, self.shown, seed=self.request.seed)
        last = self.done[self.id("table-1-stochastic")].latents[: self.shown]
        self.draw_rows(
            "figure-1",
            "Figure 1: Reconstructions during a run",
            f"The first {self.shown} of {len(self.images):,} generated targets, and their "
            "reconstructions with stochastic clipping. The paper shows them after initialisation, "
            "after 100 steps and after 20,000 steps.",
            {
                "target": self.images[: self.shown],
                "after initialisation": self.inverter.generate(first),
                f"after {self.early} steps": self.done[self.id("figure-1-early")].images,
                f"after {self.request.max_steps:,} steps": self.inverter.generate(last),
            },
            alt="Rows of images: targets, and their reconstructions at three stages of a run",
        )

    def _add_figure_2(self) -> None:
        cells = {
            name: [
                self.mean(f"figure-2-{clipping}", f"latent error at noise variance {variance:g}")
                for variance in NOISE_VARIANCES
            ]
            for clipping, name in CLIPPINGS.items()
        }
        lines = [
            figures.Line(name, NOISE_VARIANCES, [cell.value for cell in of_name])
            for name, of_name in cells.items()
        ]
        self.add_figure(
            "figure-2",
            "Figure 2: Latent error under noise",
            f"Gaussian noise is added to {self.noisy:,} of the {len(self.images):,} targets, which "
            "are then clipped to the generator's value range, as in the authors' code. The paper "
            "has a plot without numbers, in which the error grows in proportion to the noise and "
            "is lowest with stochastic clipping.",
            partial(
                figures.curves,
                lines,
                x_label="variance of the pixel noise",
                y_label="mean latent error",
                x_log=True,
                y_log=True,
            ),
            alt="Mean latent error against the variance of the noise, one line per clipping",
        )
        self.add_table(
            "figure-2-numbers",
            "Numbers for Figure 2",
            "Mean latent error after the last step.",
            columns=[
                Column(f"{variance:g}", "{:.3g}", group="variance of the noise", best="lowest")
                for variance in NOISE_VARIANCES
            ],
            rows=[Row(name, of_name) for name, of_name in cells.items()],
        )


def starting_latents(inverter: Inverter, count: int, *, seed: int) -> FloatArray:
    """Return the initial latents of ``invert``'s first targets for this seed."""
    manifest = inverter.manifest
    prior = json.dumps(manifest.prior.describe())
    ids = np.arange(count, dtype=np.uint64)
    latents: FloatArray = _core.draw_initial(prior, seed, ids, 0, manifest.latent_size)
    return latents.reshape(count, *manifest.latent_shape)


def _add_differences(experiments: Sequence[_Experiment]) -> None:
    report, request = experiments[0].report, experiments[0].request
    (stage,) = experiments[0].recipes["table-1"]["stochastic"].stages
    solver = stage.solver
    assert isinstance(solver, GradientDescent)
    assert isinstance(solver.schedule, StepDecay)
    rate, halved = solver.learning_rate, solver.schedule.every
    scale = _pixel_scale(experiments[0].value_range)
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
        + joined(one.unseen_source for one in experiments),
    )
    report.difference(
        "Figure 2", "number of images not given", f"{experiments[0].noisy} images per variance"
    )
    add_shared_differences(
        experiments,
        training="a DCGAN as re-implemented by Amos (2016); its data is not named",
        image="not given",
        batch_norm="in the authors' code, batch statistics, for targets and estimates alike",
        draws="TensorFlow's; one per component that leaves the range",
    )
