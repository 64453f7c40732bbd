"""Creswell & Bharath 2016, "Inverting the generator of a generative adversarial network".

Tables 2 and 3 and Figures 1 to 3, on generators of MNIST, Omniglot or other data: binary
cross-entropy between test images and reconstructions, without and with a regulariser, which is
clipping for a uniform prior and a penalty on the latents' moments for a normal prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from pyinv import evaluation, recipes
from pyinv.batching import DEFAULT_BATCH_SIZE
from pyinv.bundle import Manifest
from pyinv.constraints import NoConstraint
from pyinv.datasets import Dataset, to_range
from pyinv.errors import InputError
from pyinv.papers import figures
from pyinv.papers.differences import add_shared_differences, joined
from pyinv.papers.experiment import Experiment, run_experiments
from pyinv.papers.generators import Generator, GivenData, choose, free_key, obtain_generators
from pyinv.papers.plan import Planned
from pyinv.papers.report import Cell, Column, Paper, Report, Row, literal
from pyinv.papers.request import Request
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe
from pyinv.solvers import Adam

__all__ = ["PAPER", "creswell_recipe", "reproduce"]

PAPER = Paper(
    name="creswell",
    title="Inverting the generator of a generative adversarial network",
    authors="Antonia Creswell and Anil Anthony Bharath",
    year=2016,
    venue="preprint",
    link="arXiv:1611.05644",
)

METHODS = {
    ("uniform", "without"): "without clipping",
    ("uniform", "with"): "with clipping",
    ("normal", "without"): "without regularisation",
    ("normal", "with"): "with regularisation",
}
# The table and the published mean absolute errors by dataset, in the order of METHODS.
TABLES = {
    "mnist": (2, (0.027, 0.032, 0.042, 0.044)),
    "omniglot": (3, (0.023, 0.045, 0.020, 0.020)),
}
MODES = {"eval": "eval mode", "batch": "batch statistics"}
PRIORS = ("uniform", "normal")
SAMPLES = 100
PAIRS = 20


def creswell_recipe(
    manifest: Manifest, *, held: bool, steps: int, rate: float | None = None
) -> Recipe:
    """Return the paper's method for a generator.

    Args:
        manifest: the generator's manifest.
        held: whether to regularise latents: clipping (uniform prior) or the moment penalty (normal
            prior). The paper compares both cases.
        steps: number of steps.
        rate: Adam's learning rate; None uses the recipe's, 0.01.

    Source: Creswell & Bharath 2016, section 5; see ``pyinv.recipes.creswell``.
    """
    recipe = recipes.creswell(manifest).replace(max_steps=steps)
    if not held:
        recipe = recipe.replace(constraint=NoConstraint(), penalties=())
    return recipe if rate is None else recipe.replace(learning_rate=rate)


def reproduce(request: Request) -> Path:
    """Reproduce the paper's tables and figures, and write a report.

    Args:
        request: one or more datasets, whose random test images are inverted, and generators with
            the loss "bce". Each generator uses the dataset that its bundle says it was trained on;
            if only one dataset is given, it uses that. Without generators, two are trained per
            dataset, one with a uniform and one with a normal prior, with the configuration
            "creswell", or "creswell-omniglot" for Omniglot. The paper states neither the number of
            targets nor the number of steps. The learning rate is Adam's, by default 0.01. The
            machine's ``batch_size`` matters where targets depend on one another: with
            ``batch_norm="batch"`` and under the moment penalty.

    Returns:
        the path of report.html. numbers.json and the figures are beside it.

    Raises:
        InputError: bad data, no data for a generator, or fewer test images than targets.
        BundleError: a bundle that is missing or damaged, or has no loss "bce".
        OutputError: the folder cannot be written to.
        DependencyError: torch, for training, is missing.
        KeyboardInterrupt: Ctrl-C; its message says how many runs are done. Another call with the
            same request resumes.

    Source: Creswell & Bharath 2016, section 5.
    """
    if not request.data:
        raise InputError(
            "Creswell & Bharath invert test images, but no data was given: "
            "give a dataset's path (--data)"
        )
    opened = obtain_generators(
        request,
        paper="Creswell & Bharath",
        configuration=lambda data: "creswell-omniglot" if data == "omniglot" else "creswell",
        priors=(Uniform, Normal),
        losses=("bce",),
        modes=("eval", "batch"),
        test_images=request.targets,
    )
    given = GivenData(request, needs_tests=True)
    experiments = sorted(
        (_Experiment(generator, request, given) for generator in opened),
        key=_Experiment.place,
    )
    _disambiguate(experiments)
    report = run_experiments(experiments, PAPER, request)
    _add_differences(experiments)
    names = list(dict.fromkeys(experiment.data for experiment in experiments))
    about = {name: [one for one in experiments if one.data == name] for name in names}
    for one in experiments:
        one.add_runs()
    keys: dict[str, str] = {}
    for name in names:
        keys[name] = free_key(name, keys.values())
        _add_table(report, keys[name], about[name])
    _add_spread(report, experiments)
    for one in experiments:
        one.add_samples()
    for name in names:
        for one in about[name]:
            one.add_pairs()
    return report.write()


class _Experiment(Experiment):
    """Two cells of a table: one generator, without and with regularisation."""

    def __init__(self, generator: Generator, request: Request, given: GivenData) -> None:
        super().__init__(generator, request)
        dataset = _test_images(generator, given)
        self.data = dataset.name
        self.source = Path(dataset.source).name
        chosen = choose(dataset, request.targets, seed=request.seed)
        self.targets = to_range(dataset.images[chosen], self.value_range)
        made = self.inverter.sample(request.targets, seed=request.seed + 1)
        self.made = self.inverter.generate(made)
        self.mode = self.manifest.batch_norm
        self.prior = self.manifest.prior.kind()
        self.apart = ""  # distinguishes it from others with the same data, prior and mode
        self.methods = {name: METHODS[self.prior, name] for name in ("without", "with")}
        self.runs = {**self.methods, "generated": f"generated images, {self.methods['with']}"}
        """The names of the runs for people: the paper's two cells, and one on generated images."""

    def place(self) -> tuple[str, int, int]:
        """Return its sort key in the report: data, batch-norm mode and prior."""
        return self.data, list(MODES).index(self.mode), PRIORS.index(self.prior)

    @property
    def label(self) -> str:
        """Its name for people, unique among the experiments."""
        parts = [self.data, f"{self.prior} prior", MODES[self.mode], self.apart]
        if self.generator.data not in (None, self.data):
            parts.append(f"generator trained on {self.generator.data}")
        return ", ".join(filter(None, parts))

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs."""
        return [
            Planned(
                self.id(run),
                f"{self.label}, {name}",
                self.inverter,
                self.made if run == "generated" else self.targets,
                creswell_recipe(
                    self.manifest,
                    held=run != "without",
                    steps=self.request.max_steps,
                    rate=self.request.learning_rate,
                ),
            )
            for run, name in self.runs.items()
        ]

    def add_runs(self) -> None:
        """Add the arrays that the report's numbers are computed from."""
        for planned in self.plan:
            inversion = self.done[planned.id]
            latents = inversion.latents.reshape(len(inversion), -1)
            arrays = {
                "absolute_error": evaluation.mean_absolute_error(
                    planned.images, inversion.images, value_range=self.value_range
                ),
                "cross_entropy": inversion.loss,
                "latent_spread": latents.std(axis=1),
            }
            prior = self.manifest.prior
            if isinstance(prior, Uniform):
                outside = (latents < prior.low) | (latents > prior.high)
                arrays["share_outside"] = outside.mean(axis=1)
            self.add_inversion(planned.id, planned.label, arrays)
        # The background is white if the characters are black on white.
        low, high = self.value_range
        background = low if self.targets.mean() < (low + high) / 2 else high
        blank = np.full_like(self.targets, background)
        self.report.add_run(
            self.id("blank"),
            f"{self.label}: a blank image for every target",
            arrays={
                "absolute_error": evaluation.mean_absolute_error(
                    self.targets, blank, value_range=self.value_range
                )
            },
        )

    def cells(self, published: Mapping[tuple[str, str], float]) -> list[Cell]:
        """Return the mean absolute errors without and with regularisation."""
        return [
            self.mean(method, "absolute_error", published.get((self.prior, method)))
            for method in self.methods
        ]

    def spread(self) -> list[Row]:
        """Return one row of statistics per run."""

        def cells(run: str) -> list[Cell | None]:
            errors = self.ref(run, "absolute_error")
            return [
                self.mean(run, "absolute_error"),
                self.report.compute("median", values=errors),
                self.report.compute("quantile", values=errors, fraction=1.0),
                self.mean(run, "cross_entropy"),
                self.mean(run, "latent_spread"),
                self.mean(run, "share_outside") if self.prior == "uniform" else None,
            ]

        return [Row(name, cells(run), group=self.label) for run, name in self.runs.items()]

    def add_samples(self) -> None:
        """Add Figure 1: samples of the generator."""
        self.draw_samples(
            f"figure-1-{self.generator.key}",
            f"Figure 1: Generations, {self.label}",
            SAMPLES,
            seed=self.request.seed,
        )

    def add_pairs(self) -> None:
        """Add Figures 2 and 3: targets and their reconstructions."""
        number = {"mnist": 2, "omniglot": 3}.get(self.data)
        shown = min(PAIRS, len(self.targets))
        for method, name in self.methods.items():
            id = self.id(method)
            title = f"{self.label}, {name}"
            self.report.add_figure(
                f"pairs-{id}",
                f"Figure {number}: {title}" if number else f"Reconstructions, {title}",
                f"Reconstructions of the first {shown} of {len(self.targets):,} targets. "
                "Unlike in the paper, the original is on the left and its reconstruction on the "
                "right.",
                partial(
                    figures.pairs,
                    self.targets[:shown],
                    self.done[id].images[:shown],
                    value_range=self.value_range,
                ),
                alt="Pairs of a test image and its reconstruction",
            )


def _disambiguate(experiments: Sequence[_Experiment]) -> None:
    """Name the generators of experiments with the same data, prior and mode."""
    for place in {one.place() for one in experiments}:
        alike = [one for one in experiments if one.place() == place]
        titles = {one.generator.title for one in alike}
        for one in alike if len(alike) > 1 else ():
            named = len(titles) == len(alike)
            one.apart = one.generator.title if named else one.generator.key


def _test_images(generator: Generator, given: GivenData) -> Dataset:
    """Return the test images for a generator; if only one dataset is given, its test images."""
    dataset = given.of(generator, any_data=True)
    if dataset is None:
        raise InputError(
            f"{generator.title}: its bundle says that it was trained on "
            f"{generator.data or 'unnamed data'}, but no given dataset has that name; "
            "give that dataset, or a single one for all generators"
        )
    return dataset


def _add_table(report: Report, key: str, experiments: Sequence[_Experiment]) -> None:
    """Add Table 2 (MNIST), Table 3 (Omniglot) or the like for another dataset."""
    name, request = experiments[0].data, experiments[0].request
    number, errors = TABLES.get(name, (None, ()))
    published = dict(zip(METHODS, errors, strict=False))
    rows = []
    for mode, heading in MODES.items():
        of_mode = [one for one in experiments if one.mode == mode]
        by_prior = [[one for one in of_mode if one.prior == prior] for prior in PRIORS]
        for pair in zip_longest(*by_prior):
            cells: list[Cell | None] = []
            for one in pair:
                cells += [None, None] if one is None else one.cells(published)
            apart = dict.fromkeys(one.apart for one in pair if one is not None and one.apart)
            rows.append(Row(": ".join(filter(None, [heading, "; ".join(apart)])), cells))
    title = f"Reconstruction error, {name}"
    report.add_table(
        f"table-{key}",
        f"Table {number}: {title}" if number else title,
        f"Mean absolute pixel error over {request.targets} random test images "
        f"({literal(experiments[0].source)}), {request.max_steps:,} steps. The paper publishes "
        "such a mean without its scale; it is taken to be for pixels from 0 to 1. A blank image "
        "has an error of {blank:.3f}.",
        columns=[
            Column(name, "{:.4f}", group=f"{prior} prior") for (prior, _), name in METHODS.items()
        ],
        rows=rows,
        row_title="Batch norm",
        cells={"blank": experiments[0].mean("blank", "absolute_error")},
    )


def _add_spread(report: Report, experiments: Sequence[_Experiment]) -> None:
    report.add_table(
        "spread",
        "The errors behind the means",
        "Mean, median and worst error over the targets; the cross-entropy, which is the loss that "
        "was minimised; the standard deviation of a latent's components (1 under a standard normal "
        "prior, 0.577 under a uniform one on [-1, 1]); and the share of components outside the "
        "uniform prior. The generator can make generated images exactly, so their error is due to "
        "the method. The additional error of test images is mostly due to the generator.",
        columns=[
            Column("mean", "{:.4f}", group="absolute error"),
            Column("median", "{:.4f}", group="absolute error"),
            Column("worst", "{:.4f}", group="absolute error"),
            Column("cross-entropy", "{:.4f}"),
            Column("std of z", "{:.3f}"),
            Column("outside", "{:.1f}", percent=True),
        ],
        rows=[row for experiment in experiments for row in experiment.spread()],
        row_title="Method",
    )


def _add_differences(experiments: Sequence[_Experiment]) -> None:
    report, request = experiments[0].report, experiments[0].request
    solver = experiments[0].plan[0].recipe.stages[0].solver
    assert isinstance(solver, Adam)
    batch_size = experiments[0].inverter.batch_size
    batch_size = DEFAULT_BATCH_SIZE if batch_size == "auto" else batch_size
    sources = joined(f"{one.source} ({one.data})" for one in experiments)
    report.difference(
        "Targets",
        "a random batch of test images; its size is not given",
        f"{request.targets:,} random test images of each dataset: {sources}",
    )
    report.difference(
        "Optimiser and steps",
        "not given; a later version of the authors' code has RMSprop, learning rate 0.01, 5,000 "
        "to 10,000 steps",
        f"Adam with beta1 = {solver.beta1:g}, learning rate {solver.learning_rate:g}, "
        f"{request.max_steps:,} steps",
    )
    report.difference(
        "Loss and weights",
        "binary cross-entropy, without saying whether summed or averaged over pixels; under a "
        "normal prior, plus the penalty of equation 5 with its weights",
        "the mean over pixels, plus the penalty with the same weights",
    )
    report.difference(
        "Batches",
        "all targets in one batch",
        f"batches of at most {batch_size} for batch statistics and for the "
        "moment penalty; otherwise targets are independent",
    )
    add_shared_differences(
        experiments,
        training="MNIST: 500 iterations on 50,000 images; Omniglot: 2,000 iterations on 30 "
        "alphabets; batch size 128, Adam, learning rate 0.002",
        image="28×28, 1 channel",
        batch_norm="mixed batches, hence batch statistics",
        draws="not given",
    )
