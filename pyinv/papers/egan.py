"""Egan, Zhang & Shen 2018, "Generalized latent variable recovery for generative adversarial nets".

Table 1 with all its criteria, and Figures 2, 3, 7, 8 and 9, on any generator with a normal prior:
Adam on the latent, where components that a criterion finds improbable are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import evaluation, interpolation, recipes
from pyinv.constraints import (
    Constraint,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    TruncatedNormalCutoff,
)
from pyinv.papers import figures
from pyinv.papers.differences import add_shared_differences, made_with
from pyinv.papers.folder import open_folder
from pyinv.papers.generators import Generator, obtain_generators
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
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Ref, Report, Row, literal
from pyinv.papers.request import Request, check_plots
from pyinv.papers.run_cache import RunCache
from pyinv.priors import Normal
from pyinv.recipes import Recipe
from pyinv.result import Inversion
from pyinv.solvers import Adam

__all__ = ["CRITERIA", "PAPER", "Criterion", "reproduce", "resampling_probability"]

FloatArray = NDArray[np.float32]

PAPER = Paper(
    name="egan",
    title="Generalized latent variable recovery for generative adversarial networks",
    authors="Nicholas Egan, Jeffrey Zhang and Kevin Shen",
    year=2018,
    venue="preprint",
)

THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PAPER_STEPS = 20_000
SAMPLES = 64
SUMS = 8
PATH_IMAGES = 12


@dataclass(frozen=True)
class Criterion:
    """A row of the paper's Table 1.

    Args:
        name: as in the paper's table, except trunc_normal for trunc_norm and 3.5 for 3.75.
        constraint: the criterion as a constraint.
        recovered: published percentages of targets with an error below 1e-4, 1e-3, 1e-2, 1e-1, 1.
        wins: published percentage of targets with a lower error than under ``disabled``.
        significant_wins: the same, among targets whose errors differ by a factor of 2.
        error: published average error.
    """

    name: str
    constraint: Constraint
    recovered: tuple[int, int, int, int, int]
    wins: float | None
    significant_wins: float | None
    error: float

    @property
    def key(self) -> str:
        """Its name in run ids, such as ``logistic-2-2.5``."""
        return self.name.replace("(", "-").replace(", ", "-").replace(")", "")

    @property
    def published(self) -> tuple[float | None, ...]:
        """The paper's numbers in the order of the table's columns, with shares from 0 to 1."""
        percentages = (*self.recovered, self.wins, self.significant_wins)
        return (*(None if one is None else one / 100 for one in percentages), self.error)


DISABLED = "disabled"
PRINTED = {"trunc_normal(3.5)": "3.75 in the paper's table, but 3.5 in its text and code"}
CRITERIA = (
    Criterion(DISABLED, NoConstraint(), (0, 0, 6, 41, 59), None, None, 0.864),
    Criterion("hard(2.5)", HardCutoff(2.5), (2, 10, 27, 70, 80), 76, 80.00, 0.362),
    Criterion("hard(3)", HardCutoff(3.0), (3, 14, 30, 62, 67), 80, 80.33, 0.577),
    Criterion("hard(3.5)", HardCutoff(3.5), (0, 2, 10, 58, 66), 68, 76.67, 0.671),
    Criterion(
        "trunc_normal(2.5)", TruncatedNormalCutoff(2.5), (2, 9, 38, 79, 93), 82, 86.75, 0.182
    ),
    Criterion(
        "trunc_normal(2.75)", TruncatedNormalCutoff(2.75), (2, 10, 29, 66, 80), 88, 96.67, 0.408
    ),
    Criterion("trunc_normal(3)", TruncatedNormalCutoff(3.0), (4, 9, 19, 63, 74), 85, 93.62, 0.516),
    Criterion(
        "trunc_normal(3.25)", TruncatedNormalCutoff(3.25), (2, 7, 23, 62, 73), 81, 85.71, 0.514
    ),
    Criterion("trunc_normal(3.5)", TruncatedNormalCutoff(3.5), (1, 3, 8, 52, 67), 64, 77.50, 0.670),
    Criterion("logistic(2, 2)", LogisticCutoff(2.0, 2.0), (9, 19, 47, 91, 91), 93, 93.90, 0.162),
    Criterion("logistic(3, 2)", LogisticCutoff(3.0, 2.0), (6, 16, 48, 85, 89), 90, 91.25, 0.202),
    Criterion("logistic(4, 2)", LogisticCutoff(4.0, 2.0), (4, 16, 45, 82, 93), 90, 93.42, 0.183),
    Criterion("logistic(2, 2.5)", LogisticCutoff(2.0, 2.5), (4, 15, 41, 74, 86), 89, 92.11, 0.303),
    Criterion("logistic(3, 2.5)", LogisticCutoff(3.0, 2.5), (4, 13, 39, 79, 86), 91, 93.42, 0.280),
    Criterion("logistic(4, 2.5)", LogisticCutoff(4.0, 2.5), (2, 9, 39, 77, 83), 89, 94.67, 0.328),
    Criterion("logistic(2, 3)", LogisticCutoff(2.0, 3.0), (2, 5, 20, 64, 74), 85, 94.83, 0.528),
    Criterion("logistic(3, 3)", LogisticCutoff(3.0, 3.0), (2, 7, 23, 62, 75), 80, 92.16, 0.546),
    Criterion("logistic(4, 3)", LogisticCutoff(4.0, 3.0), (1, 6, 15, 55, 69), 77, 87.50, 0.644),
)
"""The 18 rows of the paper's Table 1, in its order."""

DEFAULT = "pyinv's default recipe"
COLUMNS = (
    *(
        Column(f"{threshold:g}", percent=True, group="share with an error below", best="highest")
        for threshold in THRESHOLDS
    ),
    Column("wins", percent=True, group="against disabled", best="highest"),
    Column("sig wins", "{:.1f}", percent=True, group="against disabled", best="highest"),
    Column("avg err", "{:.3f}", best="lowest"),
)
COUNTS = {"latent_error": "after the last step", "min_latent_error": "at any step"}


def resampling_probability(criterion: Constraint, distance: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probability that a component is resampled during a run.

    Args:
        criterion: ``HardCutoff``, ``LogisticCutoff`` or ``TruncatedNormalCutoff``.
        distance: distances from the prior's mean in standard deviations, at least 0; any shape.

    Returns:
        probabilities of that shape.

    Source: Egan et al. 2018, sections 3.2.1 to 3.2.3; Figures 2 and 3.
    """
    distance = np.asarray(distance, dtype=np.float64)
    if isinstance(criterion, HardCutoff):
        return (distance > criterion.c).astype(np.float64)
    if isinstance(criterion, LogisticCutoff):
        return 1 / (1 + np.exp(-criterion.a * (distance - criterion.b)))
    if isinstance(criterion, TruncatedNormalCutoff):
        exponent: NDArray[np.float64] = np.minimum(distance, criterion.a) ** 2 - criterion.a**2
        return np.exp(exponent / 2)
    raise TypeError(f"{criterion!r} is not a criterion of Egan et al.")


def reproduce(request: Request) -> Path:
    """Reproduce the paper's table and figures, and write a report.

    Args:
        request: generators with a normal prior; without any, one is trained per dataset with the
            configuration "egan-32". ``max_steps`` is also the criteria's horizon E. The paper has
            100 targets and 20,000 steps. The learning rate is Adam's, by default 0.01 as in the
            authors' code.

    Returns:
        the path of report.html. numbers.json and the figures are beside it.

    Raises:
        InputError: bad data, or a generator with another prior.
        BundleError: a bundle that is missing or damaged.
        OutputError: the folder cannot be written to.
        DependencyError: torch, for training, or Matplotlib is missing.
        KeyboardInterrupt: Ctrl-C; its message says how many runs are done. Another call with the
            same request resumes.

    Source: Egan et al. 2018, sections 4.2 and 5; the authors' code for Adam's settings and the
    stopping rule.
    """
    check_plots()
    open_folder(request.folder)
    opened = obtain_generators(
        request,
        paper="Egan et al.",
        configuration=lambda data: "egan-32",
        priors=(Normal,),
    )
    experiments = [_Experiment(generator, request) for generator in opened]
    plan = [planned for experiment in experiments for planned in experiment.plan]
    runs = RunCache(request.folder)
    done = run_plan(plan, runs, request)
    report = Report(request.folder, PAPER, settings=request.describe(), made=made_with(runs))
    _add_differences(report, request, experiments)
    several = len(experiments) > 1
    about = [f", {one.generator.title}" if several else "" for one in experiments]
    for experiment, title in zip(experiments, about, strict=True):
        experiment.add_tables(report, runs, done, title)
    _add_criteria(report)
    for experiment, title in zip(experiments, about, strict=True):
        experiment.add_figures(report, title)
    return report.write()


class _Experiment:
    """The tables and figures of one generator."""

    def __init__(self, generator: Generator, request: Request) -> None:
        self.generator = generator
        self.inverter = generator.inverter
        self.request = request
        self.latents = self.inverter.sample(request.targets, seed=request.seed)
        self.images = self.inverter.generate(self.latents)
        default = recipes.default(generator.manifest)
        self.default = default.replace(max_steps=min(default.max_steps, request.max_steps))
        self.precise = precise_recipe(generator.manifest)

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, one per criterion and one per recipe of pyinv's."""
        return [
            Planned(
                id=self._id(key),
                label=f"{self.generator.title}: {name}",
                inverter=self.inverter,
                images=self.images,
                recipe=recipe,
                true_latents=self.latents,
            )
            for name, (key, recipe) in self._methods.items()
        ]

    @cached_property
    def _methods(self) -> dict[str, tuple[str, Recipe]]:
        """The rows of Table 1 that run: each row's key in run ids, and its recipe."""
        methods = {one.name: (one.key, self._recipe(one)) for one in CRITERIA}
        methods[DEFAULT] = ("default", self.default)
        if self.precise is not None:
            methods[PRECISE] = ("precise", self.precise)
        return methods

    @property
    def _ours(self) -> list[str]:
        """The rows of Table 1 with pyinv's own recipes, as far as they run."""
        return [name for name in (DEFAULT, PRECISE) if name in self._methods]

    def _recipe(self, criterion: Criterion) -> Recipe:
        recipe = recipes.egan(self.generator.manifest, criterion.constraint).replace(
            max_steps=self.request.max_steps
        )
        if self.request.learning_rate is not None:
            recipe = recipe.replace(learning_rate=self.request.learning_rate)
        return recipe

    def _id(self, name: str) -> str:
        return f"{self.generator.key}-{name}"

    def add_tables(
        self, report: Report, runs: RunCache, done: Mapping[str, Inversion], about: str
    ) -> None:
        """Add the runs, the result and the tables; ``about`` is appended to every title."""
        for planned in self.plan:
            inversion = done[planned.id]
            assert inversion.min_latent_error is not None
            on_pixels = planned.recipe.stages[-1].loss == "mse"
            report.add_run(
                planned.id,
                planned.label,
                recipe=inversion.recipe,
                arrays={
                    "latent_error": evaluation.latent_error(self.latents, inversion.latents),
                    "min_latent_error": inversion.min_latent_error,
                    "image_error" if on_pixels else "loss": inversion.loss,
                    **cost_arrays(inversion, self.generator.manifest.latent_size),
                },
                facts=runs.facts(planned.id),
            )
        rows = {array: self._rows(report, array) for array in COUNTS}
        self._add_result(report, rows, about)
        for array, counted in COUNTS.items():
            self._add_table(report, rows[array], array, counted, about)
        self._add_costs(report, rows["latent_error"], about)
        self._add_ordering(report, rows, about)

    def add_figures(self, report: Report, about: str) -> None:
        """Add the generator's figures."""
        self._add_samples(report, about)
        self._add_sums(report, about)
        self._add_paths(report, about)

    def _rows(self, report: Report, array: str) -> dict[str, list[Cell | None]]:
        """Return Table 1's cells by criterion, from one of the error arrays of ``COUNTS``."""
        rows = {}
        for one in CRITERIA:
            # The paper's errors are those after the last step.
            theirs = one.published if array == "latent_error" else ()
            rows[one.name] = self._row(report, one.key, array, theirs, PRINTED.get(one.name))
        for name in self._ours:
            rows[name] = self._row(report, self._methods[name][0], array)
        return rows

    def _row(
        self,
        report: Report,
        key: str,
        array: str,
        published: Sequence[float | None] = (),
        note: str | None = None,
    ) -> list[Cell | None]:
        """Return one row, in the order of ``COLUMNS``."""
        errors, baseline = Ref(self._id(key), array), Ref(self._id(DISABLED), array)
        theirs = iter(published or [None] * len(COLUMNS))
        cells: list[Cell | None] = [
            report.compute(
                "recovery_rate", errors=errors, threshold=threshold, published=next(theirs)
            )
            for threshold in THRESHOLDS
        ]
        for function in ("win_rate", "significant_win_rate"):
            number = next(theirs)
            cells.append(
                None
                if errors == baseline
                else report.compute(
                    function, errors=errors, baseline_errors=baseline, published=number
                )
            )
        cells.append(report.compute("mean", values=errors, published=next(theirs), note=note))
        return cells

    def _add_table(
        self,
        report: Report,
        rows: Mapping[str, list[Cell | None]],
        array: str,
        counted: str,
        about: str,
    ) -> None:
        final = array == "latent_error"
        title = "Table 1: Resampling criteria" if final else "Table 1 with the errors at any step"
        table = [
            Row(
                name,
                cells,
                emphasis=name == DISABLED,
                group=NOT_IN_PAPER if name in self._ours else "",
            )
            for name, cells in rows.items()
        ]
        but = f" but {PRECISE}"
        if self.precise is None:
            but = ""
            why = why_not_run(self.generator.manifest)
            table.append(Row(PRECISE, group=NOT_IN_PAPER, text=why))
        report.add_table(
            self._id("table-1" if final else "table-1-any"),
            f"{title}{about}",
            f"Latent errors {counted}. {self.request.targets} generated images, "
            f"{self.request.max_steps:,} steps, which is also the criteria's horizon E. The error "
            "is the mean squared error per latent component. wins: share of targets with a lower "
            "error than under disabled. sig wins: the same, among targets whose errors differ by "
            f"at least a factor of 2. All rows{but} start from the same latents.",
            columns=COLUMNS,
            rows=table,
            row_title="Criterion",
        )

    def _add_costs(self, report: Report, rows: Mapping[str, list[Cell | None]], about: str) -> None:
        """Add the costs of some rows of Table 1; the other criteria cost the same."""
        best = min(CRITERIA, key=lambda one: one.error).name
        column = THRESHOLDS.index(1e-4)

        def row(name: str, group: str, published_steps: int | None = None) -> Row:
            key, recipe = self._methods[name]
            costs = cost_cells(report, self._id(key), recipe, published_steps=published_steps)
            return Row(name, [rows[name][column], *costs], group=group)

        report.add_table(
            self._id("costs"),
            f"Cost per latent{about}",
            f"Means over the latents of Table 1; {literal(best)} is the paper's best criterion. "
            f"{describe_costs(self.generator.manifest.latent_size)} The published numbers are for "
            f"the paper's {PAPER_STEPS:,} steps; the authors' code stops earlier once the loss no "
            "longer changes.",
            columns=[COLUMNS[column], *COST_COLUMNS],
            rows=[
                *(row(name, "", PAPER_STEPS) for name in (DISABLED, best)),
                *(row(name, NOT_IN_PAPER) for name in self._ours),
            ],
            row_title="Criterion",
        )

    def _add_ordering(
        self,
        report: Report,
        rows: Mapping[str, Mapping[str, list[Cell | None]]],
        about: str,
    ) -> None:
        """Add the agreement of our ordering of the criteria with the paper's, per column."""

        def agreement(array: str, column: int) -> Cell:
            both = [
                (cell, one.published[column])
                for one in CRITERIA
                if (cell := rows[array][one.name][column]) is not None
            ]
            ours, theirs = zip(*both, strict=True)
            return report.compute("rank_correlation", a=ours, b=theirs)

        report.add_table(
            self._id("ordering"),
            f"Agreement with the paper's ordering of the criteria{about}",
            "Kendall's rank correlation (tau-b) between our numbers and the paper's, over the "
            f"paper's {len(CRITERIA)} rows ({len(CRITERIA) - 1} for the wins, which disabled does "
            "not have). 1 is the same order, 0 is unrelated, -1 is the reverse. The paper's "
            "numbers are those after the last step. An empty cell means that all of our numbers "
            "are equal.",
            columns=[Column(column.title, "{:+.2f}", group=column.group) for column in COLUMNS],
            rows=[
                Row(counted, [agreement(array, index) for index in range(len(COLUMNS))])
                for array, counted in COUNTS.items()
            ],
            row_title="Our errors",
        )

    def _add_result(
        self, report: Report, rows: Mapping[str, Mapping[str, list[Cell | None]]], about: str
    ) -> None:
        """Add the best criterion by average error, here and in the paper."""
        final = {one.name: rows["latent_error"][one.name][-1] for one in CRITERIA}

        def value(name: str) -> float:
            cell = final[name]
            return math.inf if cell is None or math.isnan(cell.value) else cell.value

        ours = _ranked({one.name: value(one.name) for one in CRITERIA})
        theirs = _ranked({one.name: one.error for one in CRITERIA})
        best, published_best = " = ".join(ours[0]), " = ".join(theirs[0])
        cells = {"best": final[ours[0][0]], "disabled": final[DISABLED]}
        cells["published_best"] = final[theirs[0][0]]
        cells["default"] = rows["latent_error"][DEFAULT][-1]
        if len(ours) == 1:
            first = "All criteria have the same average error, {best:.3f}. "
        else:
            has = "has" if len(ours[0]) == 1 else "have"
            first = f"{best} {has} the lowest average error, {{best:.3f}}. "
        agrees = ours[0] == theirs[0]
        paragraphs = [
            f"{first}In the paper, {'it' if agrees else published_best} has the lowest"
            f"{' too' if agrees else ''}. Here, {published_best} has {{published_best:.3f}}, "
            f"disabled {{disabled:.3f}}, and {DEFAULT} {{default:.3f}}.",
            f"From lowest to highest, here: {_ranking_text(ours)}.",
            f"In the paper: {_ranking_text(theirs)}.",
        ]
        if self.precise is not None:
            text, text_cells = describe_precise(
                report, self._id("precise"), self.precise, threshold=THRESHOLDS[0]
            )
            paragraphs.append(text)
            cells |= text_cells
        report.add_text(
            self._id("result"),
            f"Result{about}",
            paragraphs,
            cells={name: cell for name, cell in cells.items() if cell is not None},
        )

    def _add_samples(self, report: Report, about: str) -> None:
        latents = self.inverter.sample(SAMPLES, seed=self.request.seed + 1)
        path = report.folder / "figures" / f"{self._id('figure-7')}.png"
        images = self.inverter.generate(latents)
        figures.image_grid(images, path, value_range=self._value_range)
        report.add_figure(
            self._id("figure-7"),
            f"Figure 7: Samples of the generator{about}",
            f"{SAMPLES} images of random latents. The generator: "
            f"{literal(self.generator.describe_origin())}.",
            path,
            alt="A grid of generated images",
        )

    def _add_sums(self, report: Report, about: str) -> None:
        """Add Figure 8: images of pairs of coordinate vectors and of their sums."""
        manifest = self.generator.manifest
        size = manifest.latent_size
        pairs = min(SUMS, size // 2)
        assert isinstance(manifest.prior, Normal)
        units = np.eye(size, dtype=np.float32)[: 2 * pairs]
        first, second = units[::2], units[1::2]
        rows = {}
        for label, latents in (("e₁", first), ("e₂", second), ("e₁ + e₂", first + second)):
            latents = manifest.prior.mean + manifest.prior.std * latents
            rows[label] = self.inverter.generate(
                latents.astype(np.float32).reshape(pairs, *manifest.latent_shape)
            )
        path = report.folder / "figures" / f"{self._id('figure-8')}.png"
        figures.image_rows(rows, path, value_range=self._value_range)
        report.add_figure(
            self._id("figure-8"),
            f"Figure 8: Embedding arithmetic{about}",
            "Each column is a pair of coordinate vectors: G(e₁), G(e₂) and G(e₁ + e₂). These "
            "vectors are short: the length of a latent from the prior is about the square root of "
            "its number of components. All these images are therefore close to that of the prior's "
            "mean.",
            path,
            alt="Rows of images: those of two coordinate vectors and of their sums",
        )

    def _add_paths(self, report: Report, about: str) -> None:
        """Add Figure 9: paths through the latent space."""
        prior = self.generator.manifest.prior
        assert isinstance(prior, Normal)
        # Arcs turn about the origin, and latents lie about the prior's mean.
        mean = np.float32(prior.mean)
        first, second = self.inverter.sample(2, seed=self.request.seed + 1) - mean
        circle = interpolation.great_circle(first, second, 2 * PATH_IMAGES)
        rows = {
            "linear": interpolation.linear(first, second, PATH_IMAGES),
            "SLERP": interpolation.slerp(first, second, PATH_IMAGES),
            "great circle": circle[:PATH_IMAGES],
            "second half": np.concatenate([circle[PATH_IMAGES:], circle[:1]]),
        }
        path = report.folder / "figures" / f"{self._id('figure-9')}.png"
        figures.image_rows(
            {label: self.inverter.generate(latents + mean) for label, latents in rows.items()},
            path,
            value_range=self._value_range,
        )
        report.add_figure(
            self._id("figure-9"),
            f"Figure 9: Interpolation{about}",
            "Between two random latents, along a straight line and along an arc about the prior's "
            "mean (SLERP), and once around the great circle through both, back to the first. The "
            "middle of the straight line is closer to the prior's mean than random latents are.",
            path,
            alt="Rows of images along three paths through the latent space",
        )

    @property
    def _value_range(self) -> tuple[float, float]:
        return self.generator.manifest.value_range


def _ranked(errors: Mapping[str, float]) -> list[list[str]]:
    """Return the names from the lowest error to the highest, grouped where errors are equal."""
    ordered = sorted(errors, key=errors.__getitem__)
    return [list(equal) for _, equal in groupby(ordered, key=errors.__getitem__)]


def _ranking_text(ranked: Sequence[Sequence[str]]) -> str:
    return "; ".join(" = ".join(equal) for equal in ranked) if len(ranked) > 1 else "all are equal"


def _add_criteria(report: Report) -> None:
    """Add Figures 2 and 3: the criteria's curves."""
    distance = np.linspace(0, 4, 201)
    for number, kind, what in (
        (2, LogisticCutoff, "logistic"),
        (3, TruncatedNormalCutoff, "truncated normal"),
    ):
        path = report.folder / "figures" / f"figure-{number}.png"
        figures.curves(
            [
                figures.Line(one.name, distance, resampling_probability(one.constraint, distance))
                for one in CRITERIA
                if isinstance(one.constraint, kind)
            ],
            path,
            x_label="distance from the mean, |z|",
            y_label="probability of resampling during the run",
        )
        report.add_figure(
            f"figure-{number}",
            f"Figure {number}: {what.capitalize()} criteria",
            "The probability p that a component is resampled during a run of E steps, by its "
            "distance from the mean. Per step, the probability is 1 - (1 - p)^(1/E).",
            path,
            alt=f"Curves of the {what} criteria, rising from 0 to 1",
        )


def _add_differences(report: Report, request: Request, experiments: Sequence[_Experiment]) -> None:
    solver = experiments[0].plan[0].recipe.stages[0].solver
    assert isinstance(solver, Adam)
    report.difference("Targets", "100 generated images", f"{request.targets:,} generated images")
    report.difference(
        "Steps, and horizon E of the criteria",
        "20,000; the authors' code stops earlier if the loss changes by less than 1e-10",
        f"{request.max_steps:,}, with the same stopping rule",
    )
    report.difference(
        "Optimiser",
        "Adam; in the authors' code learning rate 0.01, betas 0.5 and 0.999",
        f"Adam, learning rate {solver.learning_rate:g}, betas 0.5 and 0.999",
    )
    report.difference(
        "trunc_normal(3.5)",
        "3.5 in the text and the authors' code, 3.75 in the table",
        "3.5",
    )
    add_shared_differences(
        report,
        [experiment.generator for experiment in experiments],
        training="a DCGAN on 121,267 photographs of food (Yelp), with soft labels, for 20 epochs",
        image="64×64, 3 channels",
        batch_norm="not given",
        draws="PyTorch's; in the authors' code, one draw for all components of a step, "
        "reseeded for each target",
        seed=request.seed,
    )
