"""Egan, Zhang & Shen 2018, "Generalized latent variable recovery for generative adversarial nets".

Table 1 with all its criteria, and Figures 2, 3, 7, 8 and 9, on any generator with a normal prior:
Adam on the latent, where components that a criterion finds improbable are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import interpolation, recipes
from pyinv.constraints import (
    Constraint,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    TruncatedNormalCutoff,
)
from pyinv.papers import figures
from pyinv.papers.differences import add_shared_differences
from pyinv.papers.experiment import RecoveryExperiment, run_experiments
from pyinv.papers.generators import obtain_generators
from pyinv.papers.plan import Planned
from pyinv.papers.precise import (
    ADAM,
    COST_COLUMNS,
    NOT_IN_PAPER,
    PRECISE,
    describe_costs,
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Report, Row, literal
from pyinv.papers.request import Request, check_plots
from pyinv.priors import Normal
from pyinv.recipes import Recipe
from pyinv.solvers import Adam

__all__ = ["CRITERIA", "PAPER", "Criterion", "reproduce", "resampling_probability"]

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
    opened = obtain_generators(
        request,
        paper="Egan et al.",
        configuration=lambda data: "egan-32",
        priors=(Normal,),
    )
    experiments = [_Experiment(generator, request) for generator in opened]
    report = run_experiments(experiments, PAPER, request)
    _add_differences(experiments)
    for experiment in experiments:
        experiment.add_tables()
    _add_criteria(report)
    for experiment in experiments:
        experiment.add_figures()
    return report.write()


class _Experiment(RecoveryExperiment):
    """The tables and figures of one generator."""

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, one per criterion and one per recipe of pyinv's."""
        return [
            self.planned(key, name, self.images, recipe, true_latents=self.latents)
            for name, (key, recipe) in self._methods.items()
        ]

    @cached_property
    def _methods(self) -> dict[str, tuple[str, Recipe]]:
        """The rows of Table 1 that run: each row's key in run ids, and its recipe."""
        methods = {one.name: (one.key, self._recipe(one)) for one in CRITERIA}
        return methods | self._ours

    @property
    def _ours(self) -> dict[str, tuple[str, Recipe]]:
        """The rows of Table 1 with pyinv's own recipes, as far as they run."""
        names = {"adam": ADAM, "precise": PRECISE}
        return {names[key]: (key, recipe) for key, recipe in self.ours.items()}

    def _recipe(self, criterion: Criterion) -> Recipe:
        recipe = recipes.egan(self.manifest, criterion.constraint).replace(
            max_steps=self.request.max_steps
        )
        if self.request.learning_rate is not None:
            recipe = recipe.replace(learning_rate=self.request.learning_rate)
        return recipe

    def add_tables(self) -> None:
        """Add the runs, the result and the tables."""
        for planned in self.plan:
            arrays = {**self.latent_errors(planned), **self.final_arrays(planned)}
            self.add_inversion(planned.id, planned.label, arrays)
        rows = {array: self._rows(array) for array in COUNTS}
        self._add_result(rows)
        for array, counted in COUNTS.items():
            self._add_table(rows[array], array, counted)
        self._add_costs(rows["latent_error"])
        self._add_ordering(rows)

    def add_figures(self) -> None:
        """Add the generator's figures."""
        self.draw_samples(
            self.id("figure-7"),
            f"Figure 7: Samples of the generator{self.about}",
            SAMPLES,
            seed=self.request.seed + 1,
        )
        self._add_sums()
        self._add_paths()

    def _rows(self, array: str) -> dict[str, list[Cell | None]]:
        """Return Table 1's cells by criterion, from one of the error arrays of ``COUNTS``."""
        rows = {}
        for one in CRITERIA:
            # The paper's errors are those after the last step.
            theirs = one.published if array == "latent_error" else ()
            rows[one.name] = self._row(one.key, array, theirs, PRINTED.get(one.name))
        for name, (key, _) in self._ours.items():
            rows[name] = self._row(key, array)
        return rows

    def _row(
        self,
        key: str,
        array: str,
        published: Sequence[float | None] = (),
        note: str | None = None,
    ) -> list[Cell | None]:
        """Return one row, in the order of ``COLUMNS``."""
        errors, baseline = self.ref(key, array), self.ref(DISABLED, array)
        theirs = iter(published or [None] * len(COLUMNS))
        cells: list[Cell | None] = [
            self.recovery_rate(key, array, threshold, next(theirs)) for threshold in THRESHOLDS
        ]
        for function in ("win_rate", "significant_win_rate"):
            number = next(theirs)
            cells.append(
                None
                if errors == baseline
                else self.report.compute(
                    function, errors=errors, baseline_errors=baseline, published=number
                )
            )
        mean = self.report.compute("mean", values=errors, published=next(theirs), note=note)
        return [*cells, mean]

    def _add_table(self, rows: Mapping[str, list[Cell | None]], array: str, counted: str) -> None:
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
        if self.precise is None:
            table.append(Row(PRECISE, group=NOT_IN_PAPER, text=why_not_run(self.manifest)))
        self.add_table(
            "table-1" if final else "table-1-any",
            title,
            f"Latent errors {counted}. {self.request.targets} generated images, "
            f"{self.request.max_steps:,} steps, which is also the criteria's horizon E. The error "
            "is the mean squared error per latent component. wins: share of targets with a lower "
            "error than under disabled. sig wins: the same, among targets whose errors differ by "
            f"at least a factor of 2. All rows{self.but_precise} start from the same latents.",
            columns=COLUMNS,
            rows=table,
            row_title="Criterion",
        )

    def _add_costs(self, rows: Mapping[str, list[Cell | None]]) -> None:
        """Add the costs of some rows of Table 1; the other criteria cost the same."""
        best = min(CRITERIA, key=lambda one: one.error).name
        column = THRESHOLDS.index(1e-4)

        def row(name: str, group: str, published_steps: int | None = None) -> Row:
            costs = self.cost_cells(*self._methods[name], published_steps)
            return Row(name, [rows[name][column], *costs], group=group)

        self.add_table(
            "costs",
            "Cost per latent",
            f"Means over the latents of Table 1; {literal(best)} is the paper's best criterion. "
            f"{describe_costs(self.manifest.latent_size)} The published numbers are for "
            f"the paper's {PAPER_STEPS:,} steps; the authors' code stops earlier once the loss no "
            "longer changes.",
            columns=[COLUMNS[column], *COST_COLUMNS],
            rows=[
                *(row(name, "", PAPER_STEPS) for name in (DISABLED, best)),
                *(row(name, NOT_IN_PAPER) for name in self._ours),
            ],
            row_title="Criterion",
        )

    def _add_ordering(self, rows: Mapping[str, Mapping[str, list[Cell | None]]]) -> None:
        """Add the agreement of our ordering of the criteria with the paper's, per column."""

        def agreement(array: str, column: int) -> Cell:
            both = [
                (cell, one.published[column])
                for one in CRITERIA
                if (cell := rows[array][one.name][column]) is not None
            ]
            ours, theirs = zip(*both, strict=True)
            return self.report.compute("rank_correlation", a=ours, b=theirs)

        self.add_table(
            "ordering",
            "Agreement with the paper's ordering of the criteria",
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

    def _add_result(self, rows: Mapping[str, Mapping[str, list[Cell | None]]]) -> None:
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
        cells["adam"] = rows["latent_error"][ADAM][-1]
        if len(ours) == 1:
            first = "All criteria have the same average error, {best:.3f}. "
        else:
            has = "has" if len(ours[0]) == 1 else "have"
            first = f"{best} {has} the lowest average error, {{best:.3f}}. "
        agrees = ours[0] == theirs[0]
        paragraphs = [
            f"{first}In the paper, {'it' if agrees else published_best} has the lowest"
            f"{' too' if agrees else ''}. Here, {published_best} has {{published_best:.3f}}, "
            f"disabled {{disabled:.3f}}, and {ADAM} {{adam:.3f}}.",
            f"From lowest to highest, here: {_ranking_text(ours)}.",
            f"In the paper: {_ranking_text(theirs)}.",
        ]
        if self.precise is not None:
            paragraphs.append(self.describe_precise(self.precise, THRESHOLDS[0]))
            cells |= self.precise_cells("precise", THRESHOLDS[0])
        self.add_text(
            "result",
            "Result",
            paragraphs,
            cells={name: cell for name, cell in cells.items() if cell is not None},
        )

    def _add_sums(self) -> None:
        """Add Figure 8: images of pairs of coordinate vectors and of their sums."""
        manifest = self.manifest
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
        self.draw_rows(
            "figure-8",
            "Figure 8: Embedding arithmetic",
            "Each column is a pair of coordinate vectors: G(e₁), G(e₂) and G(e₁ + e₂). These "
            "vectors are short: the length of a latent from the prior is about the square root of "
            "its number of components. All these images are therefore close to that of the prior's "
            "mean.",
            rows,
            alt="Rows of images: those of two coordinate vectors and of their sums",
        )

    def _add_paths(self) -> None:
        """Add Figure 9: paths through the latent space."""
        prior = self.manifest.prior
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
        self.draw_rows(
            "figure-9",
            "Figure 9: Interpolation",
            "Between two random latents, along a straight line and along an arc about the prior's "
            "mean (SLERP), and once around the great circle through both, back to the first. The "
            "middle of the straight line is closer to the prior's mean than random latents are.",
            {label: self.inverter.generate(latents + mean) for label, latents in rows.items()},
            alt="Rows of images along three paths through the latent space",
        )


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
        lines = [
            figures.Line(one.name, distance, resampling_probability(one.constraint, distance))
            for one in CRITERIA
            if isinstance(one.constraint, kind)
        ]
        report.add_figure(
            f"figure-{number}",
            f"Figure {number}: {what.capitalize()} criteria",
            "The probability p that a component is resampled during a run of E steps, by its "
            "distance from the mean. Per step, the probability is 1 - (1 - p)^(1/E).",
            partial(
                figures.curves,
                lines,
                x_label="distance from the mean, |z|",
                y_label="probability of resampling during the run",
            ),
            alt=f"Curves of the {what} criteria, rising from 0 to 1",
        )


def _add_differences(experiments: Sequence[_Experiment]) -> None:
    report, request = experiments[0].report, experiments[0].request
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
        experiments,
        training="a DCGAN on 121,267 photographs of food (Yelp), with soft labels, for 20 epochs",
        image="64×64, 3 channels",
        batch_norm="not given",
        draws="PyTorch's; in the authors' code, one draw for all components of a step, "
        "reseeded for each target",
    )
