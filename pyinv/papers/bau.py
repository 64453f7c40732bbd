"""Bau et al. 2019, "Inverting layers of a large generator".

Figure 2 (methods (a) to (f) on generated images and on photographs) and the pairs of Figure 1, on
any generator. The methods that work on layers need its module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyinv import evaluation, recipes
from pyinv.datasets import to_range
from pyinv.errors import BundleError, DependencyError
from pyinv.extras import install_command
from pyinv.papers import figures
from pyinv.papers.differences import add_shared_differences, joined
from pyinv.papers.encoders import match_encoders, open_encoders
from pyinv.papers.experiment import Experiment, run_experiments
from pyinv.papers.generators import Generator, GivenData, choose, obtain_generators
from pyinv.papers.pixels import FloatArray, absolute_error
from pyinv.papers.plan import Planned
from pyinv.papers.precise import (
    COST_COLUMNS,
    NOT_IN_PAPER,
    PRECISE,
    describe_costs,
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Row, literal
from pyinv.papers.request import Request
from pyinv.penalties import PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam

if TYPE_CHECKING:
    from pyinv.papers.bau_networks import Networks

__all__ = ["PAPER", "bau_recipe", "reproduce"]

PAPER = Paper(
    name="bau",
    title="Inverting layers of a large generator",
    authors="David Bau, Jun-Yan Zhu, Jonas Wulff, William Peebles, Hendrik Strobelt, Bolei Zhou, "
    "Antonio Torralba",
    year=2019,
    venue="ICLR 2019 workshop on debugging machine learning models",
)

METHODS = {
    "a": "(a) z optimised from a random start",
    "b": "(b) encoder trained on latents and pixels",
    "c": "(c) z optimised from (b)",
    "d": "(d) encoder trained layer by layer",
    "e": "(e) z optimised from (d)",
    "f": "(f) layers optimised from (d)",
}
ENCODERS = {"b": "latent+image", "d": "layers"}
"""The training method of each encoder."""
STARTS = {"c": "b", "e": "d", "f": "d"}
"""The encoder that each method starts from."""
RECONSTRUCT = "pyinv's reconstruct recipe from the encoder"
OURS = {"precise": f"{PRECISE} from the encoder", "reconstruct": RECONSTRUCT}

EXACT = 1e-6
"""A latent counts as recovered if 1 - cos is below this: 0.08 degrees."""

# The authors' code: Adam at 0.01, halved after 800, 1,200 and 1,800 of 3,000 steps.
PAPER_STEPS = 3000
PAPER_HALVED = (800, 1200, 1800)
PAPER_LEARNING_RATE = 0.01
PAPER_PENALTY = 1.0  # lambda, the same for every layer

SHOWN = 8
PAIRS = 10
QUANTILES = {"best": 0.0, "median": 0.5, "9 of 10 below": 0.9, "worst": 1.0}


def bau_recipe(
    steps: int, loss: str, learning_rate: float | None = None, *, penalty: float = 0.0
) -> Recipe:
    """Return the paper's optimisation for a given number of steps.

    It uses Adam and halves the learning rate three times, at the same fractions of the steps as the
    authors' code, which takes 3,000 steps and halves after 800, 1,200 and 1,800.

    Args:
        steps: number of steps.
        loss: name of the loss, the paper's d_I if the bundle has it.
        learning_rate: initial learning rate; None is 0.01.
        penalty: weight of the prior penalty; 0 for none.

    Source: Bau et al. 2019, equations 2 and 12; the authors' code.
    """
    rate = PAPER_LEARNING_RATE if learning_rate is None else learning_rate
    ends = [-(-steps * end // PAPER_STEPS) for end in (*PAPER_HALVED, PAPER_STEPS)]
    penalties = (PriorPenalty(penalty),) if penalty else ()
    stages = tuple(
        Stage(Adam(rate / 2**halvings), penalties=penalties, loss=loss, max_steps=end - begin)
        for halvings, (begin, end) in enumerate(pairwise([0, *ends]))
        if end > begin
    )
    return Recipe("bau", stages, keep="last")


def reproduce(request: Request) -> Path:
    """Reproduce Figure 2 and the pairs of Figure 1, and write a report.

    Args:
        request: generators; without any, one is trained per dataset with the configuration
            "progan-32". If a generator's module is not available, as with some bundles, it cannot
            be split into layers, and the report says so in place of (d), (e) and (f). The
            photographs are the data's test images. The feature network is trained on its training
            images and their labels. The paper has 100 generated images, the authors' code 3,000
            steps. ``encoders`` are bundles with encoders; those of "latent+image" and "layers" that
            are missing are trained. ``encoder_iterations`` applies to each phase of an encoder's
            training; None uses the configuration's.

    Returns:
        the path of report.html. numbers.json and the figures are beside it, the encoders in
        ``encoders``.

    Raises:
        InputError: bad data; a generator with a condition or batch statistics; an encoder for
            another generator, or two by the same method.
        BundleError: a bundle that is missing or damaged.
        OutputError: the folder cannot be written to.
        DependencyError: torch is missing.
        KeyboardInterrupt: Ctrl-C; its message says what is done. Another call with the same request
            resumes.

    Source: Bau et al. 2019; the authors' code (github.com/davidbau/ganseeing) for the optimiser,
    the number of steps and the penalty.
    """
    if find_spec("torch") is None:
        raise DependencyError(f"the encoders of Bau et al. need torch: {install_command('export')}")
    given = open_encoders(request, ENCODERS.values())
    opened = obtain_generators(
        request,
        paper="Bau et al.",
        configuration=lambda data: "progan-32",
        priors=(Normal, Uniform) if request.generators else (Normal,),
        overshoots=True,
    )
    matched = match_encoders(given, opened)
    data = GivenData(request)
    photographs = [_photographs(generator, request, data) for generator in opened]
    from pyinv.papers.bau_networks import Networks

    experiments = [
        _Experiment(one, Networks(one, matched[one.key], data, request), request, of_generator)
        for one, of_generator in zip(opened, photographs, strict=True)
    ]
    report = run_experiments(experiments, PAPER, request)
    _add_differences(experiments)
    for experiment in experiments:
        experiment.add_results()
    return report.write()


@dataclass(frozen=True, eq=False)
class _Targets:
    """Images to invert.

    key: their name in ids, "generated" or "photographs".
    title: their name for people.
    description: what they are, in words.
    images: [N, C, H, W].
    latents: [N, *latent_shape], their true latents; None for photographs.
    """

    key: str
    title: str
    description: str
    images: FloatArray
    latents: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class _Found:
    """A method's result.

    latents: [N, *latent_shape].
    images: [N, C, H, W].
    layer: [N, ...], the last layer before G_F; None if the generator is not split into layers.
    """

    latents: FloatArray
    images: FloatArray
    layer: FloatArray | None


def _photographs(generator: Generator, request: Request, data: GivenData) -> _Targets | None:
    """Return test images of the generator's dataset, at most as many as there are targets."""
    dataset = data.of(generator, any_data=True)
    if dataset is None:
        return None
    chosen = choose(dataset, min(request.targets, len(dataset)), seed=request.seed)
    images = to_range(dataset.images[chosen], generator.manifest.value_range)
    description = f"{len(chosen)} test images of {dataset.name}"
    return _Targets("photographs", "Photographs", description, images)


class _Experiment(Experiment):
    """The figures of one generator."""

    def __init__(
        self,
        generator: Generator,
        networks: Networks,
        request: Request,
        photographs: _Targets | None,
    ) -> None:
        super().__init__(generator, request)
        self.networks = networks
        self.inverter = networks.inverter
        self.manifest = networks.inverter.manifest
        latents = self.inverter.sample(request.targets, seed=request.seed)
        generated = _Targets(
            "generated",
            "Generated images",
            f"{request.targets} generated images",
            self.inverter.generate(latents),
            latents,
        )
        self.targets = [generated, *([photographs] if photographs is not None else [])]
        self.shown = min(SHOWN, request.targets)
        self.recipes = self._recipes()
        self.encoded = {
            (targets.key, method): networks.encoders[ENCODERS[method]].encode(targets.images)
            for targets in self.targets
            for method in ENCODERS
            if ENCODERS[method] in networks.encoders
        }
        """The encoders' latents by targets and method."""

    def _recipes(self) -> dict[str, Recipe]:
        """Return the recipes of the methods that optimise and that the bundle supports."""
        networks, request = self.networks, self.request
        own = bau_recipe(request.max_steps, networks.loss, request.learning_rate)
        found = {"a": own, "c": own}
        if networks.residual is not None:
            rate = request.learning_rate or PAPER_LEARNING_RATE
            found["e"] = own
            found["f"] = bau_recipe(
                request.max_steps,
                networks.loss,
                rate * networks.residual.rate,
                penalty=PAPER_PENALTY,
            )
        with contextlib.suppress(BundleError):
            found["precise"] = recipes.precise(self.manifest, start="encoder")
        with contextlib.suppress(BundleError):
            found["reconstruct"] = recipes.reconstruct(self.manifest, start="encoder")
        return found

    def methods(self, targets: _Targets) -> dict[str, str]:
        """Return the methods for these targets, the paper's and pyinv's, by key."""
        ours = OURS if targets.latents is not None else {"reconstruct": RECONSTRUCT}
        return METHODS | ours

    def why_not(self, method: str) -> str:
        """Return why a method is not run; "" if it is run."""
        if method in ("d", "e", "f") and not self._has_layers:
            return f"not run: {self.networks.why_no_layers}"
        if method in OURS and method not in self.recipes:
            return why_not_run(self.manifest)
        return ""

    @property
    def best_encoder(self) -> str:
        """The method whose encoder pyinv's own recipes start from."""
        return "d" if self._has_layers else "b"

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, in the order of the methods."""
        return [
            self._planned(targets, method)
            for targets in self.targets
            for method in self._ran(targets)
            if method not in ENCODERS
        ]

    def _planned(self, targets: _Targets, method: str) -> Planned:
        planned = Planned(
            self._id(targets, method),
            self._label(targets, method),
            self.inverter,
            targets.images,
            self.recipes[method],
        )
        if method == "f":
            residual = self.networks.residual
            assert residual is not None
            count, size = len(targets.images), residual.inverter.manifest.latent_size
            return replace(
                planned,
                inverter=residual.inverter,
                init=np.zeros((count, size), np.float32),
                conditions=self.encoded[targets.key, "d"].reshape(count, -1),
            )
        start = self.best_encoder if method in OURS else STARTS.get(method)
        return planned if start is None else replace(planned, init=self.encoded[targets.key, start])

    def _id(self, targets: _Targets, method: str) -> str:
        return self.id(f"{targets.key}-{method}")

    def _label(self, targets: _Targets, method: str) -> str:
        name = self.methods(targets)[method]
        return f"{self.generator.title}, {targets.title.lower()}: {name}"

    def add_results(self) -> None:
        """Add the tables and figures to the report."""
        found = {
            (targets.key, method): self._found(targets, method)
            for targets in self.targets
            for method in self._ran(targets)
        }
        for targets in self.targets:
            for method in self._ran(targets):
                self._add_run(targets, method, found[targets.key, method])
        self._add_result()
        self._add_generated()
        self._add_photographs()
        for targets in self.targets:
            self._add_pictures(found, targets)
        if self._has_layers:
            for targets in self.targets:
                self._add_pairs(found[targets.key, "f"], targets)
        self._add_spread()
        self._add_costs()

    def _found(self, targets: _Targets, method: str) -> _Found:
        if method == "f":
            residual = self.networks.residual
            assert residual is not None
            inversion, first = self.done[self._id(targets, method)], self.encoded[targets.key, "d"]
            return _Found(first, inversion.images, residual.layer(inversion.latents, first))
        if method in ENCODERS:
            latents = self.encoded[targets.key, method]
            images = self.inverter.generate(latents)
        else:
            inversion = self.done[self._id(targets, method)]
            latents, images = inversion.latents, inversion.images
        return _Found(latents, images, self.networks.layer(latents))

    def _add_run(self, targets: _Targets, method: str, found: _Found) -> None:
        """Add the arrays that a method's numbers are computed from."""
        arrays = {
            "absolute_error": absolute_error(targets.images, found.images, self.value_range),
            "squared_error": np.square(
                np.float64(targets.images) - found.images, dtype=np.float64
            ).mean(axis=(1, 2, 3)),
        }
        if targets.latents is not None:
            arrays["latent_distance"] = evaluation.cosine_distance(targets.latents, found.latents)
            if found.layer is not None:
                true = self.networks.layer(targets.latents)
                assert true is not None
                arrays["layer_distance"] = evaluation.cosine_distance(true, found.layer)
                arrays["layer_error"] = evaluation.relative_error(true, found.layer)
        id, label = self._id(targets, method), self._label(targets, method)
        if method in ENCODERS:
            self.report.add_run(id, label, arrays=arrays)
        else:
            loss = {"loss": self.done[id].loss}
            self.add_inversion(id, label, arrays | loss | self.cost_arrays(id))

    def _mean(self, targets: _Targets, method: str, array: str) -> Cell:
        return self.mean(f"{targets.key}-{method}", array)

    def _exact(self, method: str) -> Cell:
        """Return the share of generated images whose z was recovered."""
        return self.recovery_rate(f"generated-{method}", "latent_distance", EXACT)

    def _rows(self, targets: _Targets, cells_of: Mapping[str, Sequence[Cell | None]]) -> list[Row]:
        """Return one row per method: its cells, or the reason it was not run."""
        return [
            Row(
                name,
                cells_of.get(method, ()),
                tag=NOT_IN_PAPER if method in OURS else "",
                emphasis=method == "f" and method in cells_of,
                text=self.why_not(method),
            )
            for method, name in self.methods(targets).items()
        ]

    def _ran(self, targets: _Targets) -> list[str]:
        return [method for method in self.methods(targets) if not self.why_not(method)]

    @property
    def _has_layers(self) -> bool:
        return self.networks.residual is not None

    def _add_result(self) -> None:
        generated = self.targets[0]
        theirs = [method for method in self._ran(generated) if method in METHODS]
        with_z = [method for method in theirs if method != "f"]  # (f) finds no z
        arrays = {"z": "latent_distance", "pixels": "absolute_error"}
        if self._has_layers:
            arrays |= {self.networks.layer_name: "layer_error"}
        orders = []
        for what, array in arrays.items():
            methods = with_z if array == "latent_distance" else theirs
            errors = {one: self._mean(generated, one, array).value for one in methods}
            # Failed methods come last.
            ordered = sorted(methods, key=lambda one: np.nan_to_num(errors[one], nan=np.inf))
            orders.append(f"{what}: " + ", ".join(f"({method})" for method in ordered))
        paragraphs = [
            "The paper's methods on generated images, ordered from the lowest mean error to the "
            "highest. "
            + "; ".join(orders)
            + ". In the paper, (d), (e) and (f) have lower errors than (a), (b) and (c), and (f) "
            "is nearly perfect."
        ]
        cells = {}
        if self._has_layers:
            paragraphs.append("(f) does not change z, so it is not ranked by z.")
        else:
            paragraphs.append(f"(d), (e) and (f) were {self.why_not('d')}.")
        if "precise" in self.recipes:
            cells["precise"] = self._exact("precise")
            cells["cost"] = self._mean(generated, "precise", "forward_equivalents")
            others = [f"({method}) {{{method}:.1%}}" for method in with_z]
            cells |= {method: self._exact(method) for method in with_z}
            paragraphs.append(
                f"{PRECISE}, which is not in the paper, recovers z itself, up to scale: "
                f"{{precise:.1%}} of the final latents have 1 − cos below {EXACT:g}, at a cost of "
                "{cost:,.0f} forward equivalents per latent. For the paper's methods, the share "
                f"is: {', '.join(others)}. The recipe assumes that this exact generator made the "
                "image, up to rounding."
            )
        self.add_text("result", "Result", paragraphs, cells=cells)

    def _add_generated(self) -> None:
        targets = self.targets[0]
        arrays = ["latent_distance"]
        columns = [
            Column("1 − cos", "{:.3g}", group="z", best="lowest"),
            Column(f"below {EXACT:g}", "{:.0f}", percent=True, group="z", best="highest"),
        ]
        about_layer = "No layer is compared."
        if self._has_layers:
            layer = self.networks.layer_name
            about_layer = (
                f"{layer.capitalize()} is the output of the first {self.networks.cuts} layers, in "
                "(f) with the residuals added"
            )
            if self.networks.normalizes:
                about_layer += ", and each pixel normalised as at the input of the next layer"
            about_layer += "."
            arrays += ["layer_distance", "layer_error"]
            columns += [
                Column("1 − cos", "{:.3g}", group=layer, best="lowest"),
                Column("relative error", "{:.3g}", group=layer, best="lowest"),
            ]
        arrays.append("absolute_error")
        columns.append(Column("absolute error", "{:.3g}", group="pixels", best="lowest"))
        cells: dict[str, list[Cell | None]] = {}
        for method in self._ran(targets):
            first, *others = (self._mean(targets, method, array) for array in arrays)
            # (f) does not change z.
            of_z = [None, None] if method == "f" else [first, self._exact(method)]
            cells[method] = [*of_z, *others]
        self.add_table(
            "figure-2",
            "Numbers for Figure 2, generated images",
            f"Means over {targets.description}; {self.request.max_steps:,} steps in (a), (c), (e) "
            "and (f). cos is the cosine of the angle between the true latent and the one found, "
            "so a latent's length does not matter. "
            f"{about_layer} The absolute error of a pixel is relative to the value range. d_I is "
            f"{literal(self.networks.loss_description)}. {RECONSTRUCT} starts from "
            f"({self.best_encoder}). The paper plots these accuracies without numbers.",
            columns=columns,
            rows=self._rows(targets, cells),
        )

    def _add_photographs(self) -> None:
        if len(self.targets) == 1:
            self.add_text(
                "no-photographs",
                "Photographs",
                ["Not inverted: no dataset with test images was given (--data)."],
            )
            return
        targets = self.targets[1]
        self.add_table(
            "photographs",
            "Numbers for Figure 2, photographs",
            f"Means over {targets.description}. No latent makes such an image exactly: the "
            "remaining error is what the generator, or in (f) its later layers, cannot reproduce. "
            "The paper shows one image.",
            columns=[
                Column("absolute error", "{:.3g}", group="pixels", best="lowest"),
                Column("squared error", "{:.3g}", group="pixels", best="lowest"),
            ],
            rows=self._rows(
                targets,
                {
                    method: [
                        self._mean(targets, method, array)
                        for array in ("absolute_error", "squared_error")
                    ]
                    for method in self._ran(targets)
                },
            ),
        )

    def _add_spread(self) -> None:
        """Add the distribution of the errors, which means hide."""
        generated = self.targets[0]
        arrays = {"z, 1 − cos": "latent_distance"}
        if self._has_layers:
            arrays[f"{self.networks.layer_name}, relative error"] = "layer_error"
        arrays["pixels, absolute error"] = "absolute_error"
        rows = [
            Row(
                name,
                [
                    self.report.compute(
                        "quantile", values=self.ref(f"generated-{method}", array), fraction=fraction
                    )
                    for fraction in QUANTILES.values()
                ],
                group=heading,
                tag=NOT_IN_PAPER if method in OURS else "",
            )
            for heading, array in arrays.items()
            for method, name in self.methods(generated).items()
            if not self.why_not(method) and (method, array) != ("f", "latent_distance")
        ]
        self.add_table(
            "spread",
            "Distribution of the errors on generated images",
            f"Over {generated.description}.",
            columns=[Column(name, "{:.3g}") for name in QUANTILES],
            rows=rows,
        )

    def _add_costs(self) -> None:
        generated = self.targets[0]
        self.add_table(
            "costs",
            "Cost per latent",
            f"Means over {generated.description}. {describe_costs(self.manifest.latent_size)} An "
            "encoder's latent costs about one. The published numbers are for the 3,000 steps of "
            "the authors' code.",
            columns=COST_COLUMNS,
            rows=[
                Row(
                    name,
                    self.cost_cells(
                        f"generated-{method}",
                        self.recipes[method],
                        PAPER_STEPS if method in METHODS else None,
                    ),
                    tag=NOT_IN_PAPER if method in OURS else "",
                )
                for method, name in self.methods(generated).items()
                if method in self.recipes
            ],
        )

    def _add_pictures(self, found: Mapping[tuple[str, str], _Found], targets: _Targets) -> None:
        """Add Figure 2's images: reconstructions of the first targets by each method."""
        rows = {"target": targets.images[: self.shown]}
        for method in self._ran(targets):
            label = f"({method})" if method in METHODS else method
            rows[label] = found[targets.key, method].images[: self.shown]
        self.draw_rows(
            f"{targets.key}-pictures",
            f"Figure 2, {targets.title.lower()}: Reconstructions",
            f"The first {self.shown} of {literal(targets.description)}, and their reconstructions "
            "by each method.",
            rows,
            alt="Rows of images: targets, and their reconstructions by each method",
        )

    def _add_pairs(self, found: _Found, targets: _Targets) -> None:
        """Add Figure 1: targets beside their inversions by (f)."""
        row = {"generated": "first", "photographs": "second and third"}[targets.key]
        self.add_figure(
            f"{targets.key}-pairs",
            f"Figure 1, {targets.title.lower()}: Images beside their inversions by (f)",
            f"The first {min(PAIRS, len(targets.images))} of {literal(targets.description)}: x on "
            f"the left, G_F(E_F(x)) on the right, as in the {row} row of the paper's figure. The "
            "mean absolute error of a pixel over all targets is {error:.3g}.",
            partial(
                figures.pairs,
                targets.images[:PAIRS],
                found.images[:PAIRS],
                value_range=self.value_range,
                titles=("x", "(f)"),
            ),
            alt="Pairs of an image and its inversion by method f",
            cells={"error": self._mean(targets, "f", "absolute_error")},
        )


def _add_differences(experiments: Sequence[_Experiment]) -> None:
    report, request = experiments[0].report, experiments[0].request
    networks = [experiment.networks for experiment in experiments]
    stages = experiments[0].recipes["a"].stages
    ends = np.cumsum([stage.max_steps for stage in stages])[:-1]
    halved = ", ".join(f"{end:,}" for end in ends)
    first = stages[0].solver
    assert isinstance(first, Adam)
    report.difference(
        "Targets",
        "100 generated images; a photograph of a church",
        joined(targets.description for one in experiments for targets in one.targets),
    )
    report.difference("Steps", "3,000 in the authors' code", f"{request.max_steps:,}")
    report.difference(
        "Optimiser",
        "in the authors' code, Adam, learning rate 0.01, halved after 800, 1,200 and 1,800 steps",
        f"Adam, learning rate {first.learning_rate:g}"
        + (f", halved after {halved} steps, which also resets its moments" if halved else ""),
    )
    report.difference(
        "d_I",
        "L1 in pixels and L1 in features of VGG16 (up to conv4_3 in the authors' code)",
        joined(one.loss_description for one in networks),
    )
    if any(one.residual is not None for one in networks):
        report.difference(
            "Residuals of (f)",
            "added to layers 1, 2 and 3; the authors' code penalises the mean square of each, with "
            "weight 1",
            joined(one.residual.describe() for one in networks if one.residual is not None),
        )
    report.difference(
        "Encoders",
        "(b) is not described; (d) is trained layer by layer, then fine-tuned as a whole; the "
        "authors' code accumulates gradients over batches (no zero_grad)",
        joined(one.encoders_description for one in networks)
        + "; gradients are not accumulated over batches",
    )
    add_shared_differences(
        experiments,
        training="a Progressive GAN of LSUN churches and bedrooms",
        image="256×256, 3 channels",
        batch_norm="none: pixel norm",
        draws="not given",
    )
