"""Luo et al. 2017, "Learning inverse mapping by autoencoder based generative adversarial nets".

Tables 1 and 2 and Figures 2 to 5, on any generator: encoders trained by three methods, the
similarity of their reconstructions, and image search by their latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinv import evaluation
from pyinv.datasets import to_range
from pyinv.errors import DependencyError, InputError
from pyinv.inverter import Inverter
from pyinv.papers import figures
from pyinv.papers.collection import Collection, Collections
from pyinv.papers.differences import add_shared_differences, made_with
from pyinv.papers.encoders import (
    Encoder,
    match_encoders,
    open_encoders,
    to_pixels,
    train_encoders,
    why_not_trained,
)
from pyinv.papers.folder import open_folder
from pyinv.papers.generators import Generator, obtain_generators
from pyinv.papers.pixels import absolute_error
from pyinv.papers.plan import Planned, run_plan
from pyinv.papers.precise import (
    COST_COLUMNS,
    NOT_IN_PAPER,
    PRECISE,
    cost_arrays,
    cost_cells,
    describe_costs,
    precise_recipe,
    reconstruct_recipe,
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Ref, Report, Row, literal
from pyinv.papers.request import Request
from pyinv.papers.run_cache import RunCache
from pyinv.priors import Normal, Uniform
from pyinv.result import Inversion

__all__ = ["PAPER", "degrade", "reproduce"]

FloatArray = NDArray[np.float32]
Pixels = NDArray[np.uint8]

PAPER = Paper(
    name="luo",
    title="Learning inverse mapping by autoencoder based generative adversarial nets",
    authors="Junyu Luo, Yong Xu, Chenwei Tang and Jiancheng Lv",
    year=2017,
    venue="ICONIP 2017",
    link="arXiv:1703.10094",
)

METHODS = {"aegan": "AEGAN", "direct": "Direct training", "bigan": "BiGAN"}
TABLE_1 = {"aegan": 0.8266, "direct": 0.7944, "bigan": 0.6594}
TABLE_2 = {"aegan": 0.7918, "dhash": 0.7483}

FROM_ENCODER = "pyinv's reconstruct recipe, from AEGAN's latent"
FROM_DRAW = "pyinv's reconstruct recipe, from a drawn latent"
OURS = {"precise": PRECISE, "from-encoder": FROM_ENCODER, "from-draw": FROM_DRAW}

SEARCHES = {
    "aegan": "AEGAN's latents",
    "dhash": "dHash",
    "phash": "pHash",
    "histogram": "colour histogram",
    "direct": "latents of direct training",
    "bigan": "BiGAN's latents",
}
"""The features that images are searched by. The last two are not in the paper."""
IN_PAPER = ("aegan", "dhash", "phash", "histogram")
METRICS = {"dhash": "hamming", "phash": "hamming", "histogram": "intersection"}

DEGRADATIONS = {"colour": "colour changed", "occlusion": "occluded", "blur": "blurred"}
HUE = 45.0
CONTRAST = 0.8
BRIGHTNESS = 0.1
# A dark bar over the eyes of an upright face.
BAR = {"top": 0.3, "left": 0.15, "height": 0.15, "width": 0.7}
BLUR = 1 / 32  # of the image's height: a pixel at 32

FOUND = 10
SHOWN = 8
CHUNK = 2048  # images converted to float at a time, to bound memory
LARGEST_QUICK = 32  # pixels


def degrade(pixels: Pixels, kind: str) -> Pixels:
    """Degrade images as in the searches and reconstructions of Luo et al.

    Args:
        pixels: uint8 [N, C, H, W], C of 1 or 3.
        kind: "colour" rotates the hue by 45 degrees, reduces the contrast by a fifth and adds a
            tenth of the range; "occlusion" puts a black bar where a face has its eyes; "blur" is a
            Gaussian blur with a standard deviation of 1/32 of the height.

    Returns:
        uint8, the same shape.

    Source: Luo et al. 2017, sections 4.2 and 4.3, which name these but give no sizes.
    """
    unit = to_range(pixels, (0.0, 1.0))
    if kind == "colour":
        changed = evaluation.change_colour(unit, hue=HUE, contrast=CONTRAST, brightness=BRIGHTNESS)
    elif kind == "occlusion":
        changed = evaluation.occlude(unit, **BAR, value=0.0)
    elif kind == "blur":
        changed = evaluation.gaussian_blur(unit, BLUR * pixels.shape[2])
    else:
        raise InputError(f"kind must be one of {', '.join(DEGRADATIONS)}; got {kind!r}")
    return to_pixels(changed, (0.0, 1.0))


def reproduce(request: Request) -> Path:
    """Reproduce the paper's tables and figures, and write a report.

    Args:
        request: generators with a uniform or a normal prior. Without any, one is trained per
            dataset with the configuration "lipton-32". The search runs over up to 20,000 training
            images of the data, whose labels Table 2 uses. Without data, it runs over generated
            images, and Table 2 is left out. ``encoders`` are bundles with encoders; those of
            "aegan", "direct" and "bigan" that are missing are trained, with the configuration
            "luo-32", or "luo" for images of more than 32 pixels. ``max_steps`` and
            ``learning_rate`` have no effect: pyinv's recipes stop when they converge. Training also
            runs on the machine's ``device``.

    Returns:
        the path of report.html. numbers.json and the figures are beside it, the encoders in
        ``encoders``.

    Raises:
        InputError: bad data; a generator with a condition or batch statistics; an encoder for
            another generator, or two by the same method.
        BundleError: a bundle that is missing or damaged.
        OutputError: the folder cannot be written to.
        DependencyError: torch, imagehash, scikit-learn or SciPy is missing.
        KeyboardInterrupt: Ctrl-C; its message says what is done. Another call with the same request
            resumes.

    Source: Luo et al. 2017, section 4 and the appendix.
    """
    _check_libraries()
    given = open_encoders(request, METHODS)
    open_folder(request.folder)
    opened = obtain_generators(
        request,
        paper="Luo et al.",
        configuration=lambda data: "lipton-32",
        priors=(Uniform, Normal) if request.generators else (Uniform,),
        overshoots=True,
    )
    matched = match_encoders(given, opened)
    collections = Collections(request)
    searched = {generator.key: collections.of(generator) for generator in opened}
    encoders = train_encoders(
        matched,
        opened,
        request,
        METHODS,
        configurations={one.key: _configuration(one) for one in opened},
        images={
            key: (one.dataset.name, one.dataset.images)
            for key, one in searched.items()
            if one.dataset is not None
        },
    )
    experiments = [
        _Experiment(one, encoders[one.key], request, searched[one.key]) for one in opened
    ]
    plan = [planned for experiment in experiments for planned in experiment.plan]
    runs = RunCache(request.folder)
    done = run_plan(plan, runs, request)
    made = {name: value for name, value in made_with(runs).items() if value}
    report = Report(request.folder, PAPER, settings=_settings(request), made=made)
    _add_differences(report, request, experiments)
    for experiment in experiments:
        request.say(f"searching: {experiment.generator.title}")
        experiment.report(report, runs, done, alone=len(experiments) == 1)
    return report.write()


def _check_libraries() -> None:
    for module, name in (
        ("imagehash", "imagehash"),
        ("sklearn", "scikit-learn"),
        ("scipy", "SciPy"),
    ):
        if find_spec(module) is None:
            raise DependencyError(f"this report needs {name}: pip install 'pyinv[papers]'")


def _configuration(generator: Generator) -> str:
    """Return the name of the configuration that trains encoders for a generator's images."""
    return "luo-32" if max(generator.manifest.image_shape[1:]) <= LARGEST_QUICK else "luo"


def _settings(request: Request) -> dict[str, Any]:
    """Return the requested settings without those that have no effect here."""
    unused = ("max_steps", "learning_rate")
    return {name: value for name, value in request.describe().items() if name not in unused}


class _Experiment:
    """The tables and figures of one generator."""

    def __init__(
        self,
        generator: Generator,
        encoders: Mapping[str, Encoder],
        request: Request,
        collection: Collection,
    ) -> None:
        self.generator = generator
        self.encoders = encoders
        self.request = request
        self.collection = collection
        self.inverter = generator.inverter
        self.value_range = generator.manifest.value_range
        self.latents = self.inverter.sample(request.targets, seed=request.seed)
        self.images = _targets(self.inverter, self.latents)
        self.shown = min(SHOWN, request.targets)
        self.precise = precise_recipe(generator.manifest)
        random = np.random.default_rng(request.seed + 2)
        count = min(request.targets, len(collection.pixels))
        self.query_rows = np.sort(random.choice(len(collection.pixels), count, replace=False))
        self.methods = {name: METHODS[name] for name in METHODS if name in encoders}
        self.searches = {
            name: label
            for name, label in SEARCHES.items()
            if name in encoders or name not in METHODS
        }
        self._features: dict[str, NDArray[Any]] = {}

    @cached_property
    def encoded(self) -> FloatArray:
        """AEGAN's latents of the generated images."""
        return self.encoders["aegan"].inverter.encode(self.images)

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, all with pyinv's own recipes."""
        runs: list[Planned] = []

        def add(method: str, recipe: Any, **more: Any) -> None:
            runs.append(
                Planned(
                    id=self._id(f"table-1-{method}"),
                    label=f"{self.generator.title}: {OURS[method]}",
                    inverter=self.inverter,
                    images=self.images,
                    recipe=recipe,
                    true_latents=self.latents,
                    **more,
                )
            )

        if self.precise is not None:
            add("precise", self.precise)
        from_encoder = reconstruct_recipe(self.generator.manifest, start="encoder")
        add("from-encoder", from_encoder, init=self.encoded)
        if (from_draw := reconstruct_recipe(self.generator.manifest)) is not None:
            add("from-draw", from_draw)
        return runs

    def report(
        self, report: Report, runs: RunCache, done: Mapping[str, Inversion], *, alone: bool
    ) -> None:
        """Add the tables and figures; titles name the generator unless it is ``alone``."""
        about = "" if alone else f", {self.generator.title}"
        shown = self._add_reconstructions(report, runs, done)
        self._add_ranks(report)
        self._add_labels(report)
        self._add_blurred(report)
        self._add_result(report, about)
        self._add_table_1(report, about)
        self._add_costs(report, about)
        self._add_figure_2(report, shown, about)
        self._add_figure_3(report, about)
        self._add_figure_4(report, about)
        self._add_table_2(report, about)
        self._add_figure_5(report, about)

    def _id(self, name: str) -> str:
        return f"{self.generator.key}-{name}"

    # -- runs and their arrays

    def _add_reconstructions(
        self, report: Report, runs: RunCache, done: Mapping[str, Inversion]
    ) -> dict[str, tuple[Pixels, Pixels]]:
        """Add Table 1's arrays to the report; return some images and reconstructions per method."""
        shown: dict[str, tuple[Pixels, Pixels]] = {}

        def add(
            method: str,
            name: str,
            images: FloatArray,
            found: FloatArray,
            value_range: tuple[float, float],
            latents: FloatArray | None,
            **more: Any,
        ) -> None:
            # Hashes are computed from pixels as an image file stores them.
            inside = images.clip(*value_range), found.clip(*value_range)
            arrays: dict[str, Any] = {
                f"{kind}_similarity": evaluation.hash_similarity(
                    *inside, kind, value_range=value_range
                )
                for kind in ("dhash", "phash")
            }
            arrays["absolute_error"] = absolute_error(images, found, value_range)
            if latents is not None:
                arrays["latent_error"] = evaluation.latent_error(self.latents, latents)
            report.add_run(
                self._id(f"table-1-{method}"),
                f"{self.generator.title}: {name}",
                arrays=arrays | more.pop("arrays", {}),
                **more,
            )
            shown[method] = (
                to_pixels(images[: self.shown], value_range),
                to_pixels(found[: self.shown], value_range),
            )

        for method, encoder in self.encoders.items():
            inverter, value_range = encoder.inverter, encoder.value_range
            images, known = self.images, True
            if method == "bigan":
                # BiGAN trains its own generator, so its targets are that generator's images.
                made = inverter.sample(self.request.targets, seed=self.request.seed)
                images, known = _targets(inverter, made), False
            latents = inverter.encode(images)
            add(
                method,
                METHODS[method],
                images,
                inverter.generate(latents),
                value_range,
                latents if known else None,
                facts={"encoder": encoder.description},
            )
        for planned in self.plan:
            method = planned.id.removeprefix(self._id("table-1-"))
            inversion = done[planned.id]
            add(
                method,
                OURS[method],
                self.images,
                inversion.images,
                self.value_range,
                inversion.latents,
                arrays=cost_arrays(inversion, self.generator.manifest.latent_size),
                recipe=inversion.recipe,
                facts=runs.facts(planned.id),
            )
        return shown

    def _describe(self, search: str, pixels: Pixels) -> NDArray[Any]:
        """Return the features that a search compares, one row per image."""
        if search in self.encoders:
            return self.encoders[search].encode(pixels).reshape(len(pixels), -1)
        parts: list[NDArray[Any]] = []
        for first in range(0, len(pixels), CHUNK):
            images = to_range(pixels[first : first + CHUNK], (0.0, 1.0))
            if search == "histogram":
                parts.append(evaluation.colour_histogram(images))
            else:
                parts.append(evaluation.image_hash(images, search))
        return np.concatenate(parts)

    def _searched(self, search: str) -> NDArray[Any]:
        """Return a search's features of the collection."""
        if search not in self._features:
            self._features[search] = self._describe(search, self.collection.pixels)
        return self._features[search]

    def _find(self, search: str, pixels: Pixels, k: int) -> NDArray[np.int64]:
        """Return the rows of the collection that a search finds for the query images, [M, k]."""
        found = evaluation.search(
            self._searched(search),
            self._describe(search, pixels),
            k,
            metric=METRICS.get(search, "euclidean"),
        )
        return found.rows

    @cached_property
    def _queries(self) -> dict[str, Pixels]:
        """Some of the collection's images, under each degradation."""
        originals = self.collection.pixels[self.query_rows]
        return {kind: degrade(originals, kind) for kind in DEGRADATIONS}

    def _add_ranks(self, report: Report) -> None:
        """Add the rank at which each search finds the original of a degraded image."""
        for search, name in self.searches.items():
            report.add_run(
                self._id(f"figure-3-{search}"),
                f"{self.generator.title}: degraded images searched by {name}",
                arrays={
                    f"rank, {DEGRADATIONS[kind]}": evaluation.rank_of(
                        self._searched(search),
                        self._describe(search, queries),
                        self.query_rows,
                        metric=METRICS.get(search, "euclidean"),
                    )
                    for kind, queries in self._queries.items()
                },
            )

    def _add_labels(self, report: Report) -> None:
        """Add the labels that Table 2 compares."""
        labels, base_labels = self.collection.labels, self.collection.base_labels
        if labels is None or base_labels is None:
            return
        k = min(FOUND, len(labels))
        random = np.random.default_rng(self.request.seed + 4)
        chance = random.integers(len(labels), size=(len(base_labels), k))
        found = {name: self._find(name, self.collection.bases, k) for name in self.searches}
        for search, rows in {**found, "chance": chance}.items():
            report.add_run(
                self._id(f"table-2-{search}"),
                f"{self.generator.title}: similar images by {SEARCHES.get(search, 'chance')}",
                arrays={
                    "labels": base_labels,
                    "labels of the first found": labels[rows[:, 0]],
                    f"labels of the first {k}": labels[rows],
                },
            )

    def _add_blurred(self, report: Report) -> None:
        """Add the similarity of blurred images, and of their reconstructions, to the originals."""
        sharp = to_pixels(self.images, self.value_range)
        blurred = degrade(sharp, "blur")
        made = {"blurred": blurred} | {
            method: self.encoders[method].reconstruct(blurred) for method in ("aegan", "direct")
        }
        self._deblurred = {"generated": sharp, **made}
        unit = to_range(sharp, (0.0, 1.0))
        for name, pixels in made.items():
            others = to_range(pixels, (0.0, 1.0))
            report.add_run(
                self._id(f"figure-5-{name}"),
                f"{self.generator.title}: blurred, {METHODS.get(name, 'not reconstructed')}",
                arrays={
                    "dhash_similarity": evaluation.hash_similarity(unit, others),
                    "absolute_error": evaluation.mean_absolute_error(unit, others),
                },
            )

    # -- parts of the report

    def _mean(self, report: Report, run: str, array: str, published: float | None = None) -> Cell:
        return report.compute("mean", values=Ref(self._id(run), array), published=published)

    def _hits(self, report: Report, search: str, kind: str) -> Cell:
        ranks = Ref(self._id(f"figure-3-{search}"), f"rank, {DEGRADATIONS[kind]}")
        return report.compute("hit_rate", ranks=ranks)

    def _similarity(self, report: Report, search: str, found: str, theirs: bool = False) -> Cell:
        run = self._id(f"table-2-{search}")
        return report.compute(
            "label_similarity",
            labels=Ref(run, "labels"),
            found=Ref(run, found),
            published=TABLE_2.get(search) if theirs else None,
        )

    def _add_result(self, report: Report, about: str) -> None:
        cells = {
            method: self._mean(report, f"table-1-{method}", "dhash_similarity")
            for method in self.methods
        }
        results = [f"{{{method}:.4f}} ({name})" for method, name in self.methods.items()]
        paragraphs = [
            "Mean dHash similarity between generated images and their reconstructions: "
            f"{', '.join(results)}. {_order(cells, METHODS)}"
        ]
        ours = [planned.id.removeprefix(self._id("table-1-")) for planned in self.plan]
        if ours:
            cells |= {
                method.replace("-", "_"): self._mean(
                    report, f"table-1-{method}", "dhash_similarity"
                )
                for method in ours
            }
            results = [f"{{{method.replace('-', '_')}:.4f}} with {OURS[method]}" for method in ours]
            paragraphs.append(
                f"Not in the paper: {'; '.join(results)}. These optimise the latent, whereas an "
                "encoder takes a single pass; the table of costs compares them."
            )
        if self.collection.labels is not None:
            found = {
                search: self._similarity(report, search, "labels of the first found")
                for search in TABLE_2
            }
            cells |= {f"labels_{search}": cell for search, cell in found.items()}
            paragraphs.append(
                "The first image found has the label of the query image in {labels_aegan:.1%} of "
                "searches by AEGAN's latents and {labels_dhash:.1%} of searches by dHash. "
                f"{_order(found, SEARCHES)}"
            )
        report.add_text(self._id("result"), f"Result{about}", paragraphs, cells=cells)

    def _add_table_1(self, report: Report, about: str) -> None:
        rows = []
        for method, name in (METHODS | OURS).items():
            run = f"table-1-{method}"
            ours = method in OURS
            if not ours and method not in self.methods:
                rows.append(Row(name, text=why_not_trained(self.generator, method)))
                continue
            if ours and all(planned.id != self._id(run) for planned in self.plan):
                why = why_not_run(self.generator.manifest)
                rows.append(Row(name, tag=NOT_IN_PAPER, text=why))
                continue
            rows.append(
                Row(
                    name,
                    [
                        self._mean(report, run, "dhash_similarity", TABLE_1.get(method)),
                        self._mean(report, run, "phash_similarity"),
                        self._mean(report, run, "absolute_error"),
                        None if method == "bigan" else self._mean(report, run, "latent_error"),
                    ],
                    emphasis=method == "aegan",
                    tag=NOT_IN_PAPER if ours else "",
                )
            )
        own = "; for BiGAN, images of its own generator" if "bigan" in self.methods else ""
        report.add_table(
            self._id("table-1"),
            f"Table 1: Similarity of reconstructions and originals{about}",
            f"{self.request.targets:,} generated images{own}. Similarity is the share of equal "
            "bits in 64-bit hashes, about one half for unrelated images. Absolute error is the "
            "mean absolute difference of pixels in [0, 1]. Latent error is the mean squared error "
            "per latent component.",
            columns=[
                Column("dHash", "{:.4f}", group="similarity", best="highest"),
                Column("pHash", "{:.4f}", group="similarity", best="highest"),
                Column("absolute error", "{:.3g}", best="lowest"),
                Column("latent error", "{:.3g}", best="lowest"),
            ],
            rows=rows,
            row_title="Method",
        )

    def _add_costs(self, report: Report, about: str) -> None:
        if not self.plan:
            return
        report.add_table(
            self._id("costs"),
            f"Cost per latent, with and without starting from an encoder{about}",
            "Means over the images of Table 1. "
            f"{describe_costs(self.generator.manifest.latent_size)} The encoder's single pass is "
            "not counted.",
            columns=[Column("absolute error", "{:.3g}", best="lowest"), *COST_COLUMNS],
            rows=[
                Row(
                    OURS[planned.id.removeprefix(self._id("table-1-"))],
                    [
                        report.compute("mean", values=Ref(planned.id, "absolute_error")),
                        *cost_cells(report, planned.id, planned.recipe),
                    ],
                    tag=NOT_IN_PAPER,
                )
                for planned in self.plan
            ],
            row_title="Method",
        )

    def _add_figure_2(
        self, report: Report, shown: Mapping[str, tuple[Pixels, Pixels]], about: str
    ) -> None:
        rows = {"generated": shown["aegan"][0]}
        rows |= {
            (METHODS | OURS_SHORT)[method]: found
            for method, (_, found) in shown.items()
            if method not in ("bigan", "from-draw")
        }
        below = ""
        if "bigan" in shown:
            rows["BiGAN's own"], rows["BiGAN"] = shown["bigan"]
            below = ". Below: images of BiGAN's own generator and their reconstructions"
        self._draw(
            report,
            "figure-2",
            f"Figure 2: Reconstructions{about}",
            f"Generated images and their reconstructions by each method{below}.",
            rows,
            "Rows of images: generated images, and their reconstructions by each method",
        )

    def _add_table_2(self, report: Report, about: str) -> None:
        k = min(FOUND, len(self.collection.pixels))
        columns = [
            Column("first found", "{:.4f}", group="label similarity", best="highest"),
            Column(f"first {k}", "{:.4f}", group="label similarity", best="highest"),
        ]
        if self.collection.labels is None:
            rows = [
                Row(
                    "every search",
                    text="not run: it needs images with labels; give a labelled dataset (`--data`)",
                )
            ]
        else:
            rows = [
                Row(
                    name,
                    [
                        self._similarity(report, search, "labels of the first found", theirs=True),
                        self._similarity(report, search, f"labels of the first {k}"),
                    ],
                    emphasis=search == "aegan",
                    tag="" if search in TABLE_2 else NOT_IN_PAPER,
                )
                for search, name in (self.searches | {"chance": "random images"}).items()
            ]
        report.add_table(
            self._id("table-2"),
            f"Table 2: Label similarity of search results{about}",
            f"The query images are {literal(self.collection.bases_description)}; the search runs "
            f"over {literal(self.collection.description)}. Label similarity is the share of labels "
            "that the query and a result have in common. Images here have one label, their class. "
            "In the paper they have 40 attributes, many of which most images share, so the two "
            "scales are not comparable.",
            columns=columns,
            rows=rows,
            row_title="Search by",
        )

    def _add_figure_4(self, report: Report, about: str) -> None:
        bases = self.collection.bases[: self.shown]
        rows = {"query": bases}
        for search in ("aegan", "dhash"):
            rows[SEARCHES[search]] = self.collection.pixels[self._find(search, bases, 1)[:, 0]]
        self._draw(
            report,
            "figure-4",
            f"Figure 4: Similar images{about}",
            f"Some of {literal(self.collection.bases_description)}, and the first image that each "
            f"search finds among {literal(self.collection.description)}.",
            rows,
            "Rows of images: queries, and the images found by AEGAN's latents and by dHash",
        )

    def _add_figure_3(self, report: Report, about: str) -> None:
        for kind, queries in self._queries.items():
            some = queries[: self.shown]
            rows = {"original": self.collection.pixels[self.query_rows[: self.shown]]}
            rows[DEGRADATIONS[kind]] = some
            for search in IN_PAPER:
                rows[SEARCHES[search]] = self.collection.pixels[self._find(search, some, 1)[:, 0]]
            self._draw(
                report,
                f"figure-3-{kind}",
                f"Figure 3, {DEGRADATIONS[kind]}: Search results{about}",
                f"Some of {literal(self.collection.description)}, the degraded images that are the "
                "queries, and the first image that each search finds.",
                rows,
                "Rows of images: originals, queries, and the image that each search finds",
            )
        report.add_table(
            self._id("figure-3-numbers"),
            f"Numbers for Figure 3{about}",
            f"The queries are {len(self.query_rows):,} of "
            f"{literal(self.collection.description)}, degraded. The share of queries whose "
            "original is found first, and the original's median rank, where 1 is the first; "
            "images at the same distance share the mean of their ranks.",
            columns=[
                column
                for name in DEGRADATIONS.values()
                for column in (
                    Column("found first", "{:.1f}", percent=True, group=name, best="highest"),
                    Column("median rank", "{:,.1f}", group=name, best="lowest"),
                )
            ],
            rows=[
                Row(
                    name,
                    [
                        cell
                        for kind in DEGRADATIONS
                        for cell in (
                            self._hits(report, search, kind),
                            report.compute(
                                "median",
                                values=Ref(
                                    self._id(f"figure-3-{search}"), f"rank, {DEGRADATIONS[kind]}"
                                ),
                            ),
                        )
                    ],
                    emphasis=search == "aegan",
                    tag="" if search in IN_PAPER else NOT_IN_PAPER,
                )
                for search, name in self.searches.items()
            ],
            row_title="Search by",
        )

    def _add_figure_5(self, report: Report, about: str) -> None:
        names = {"generated": "generated", "blurred": "blurred", **METHODS}
        self._draw(
            report,
            "figure-5",
            f"Figure 5: Reconstructions of blurred images{about}",
            "Generated images, the same images under a Gaussian blur, and the reconstructions "
            "from the blurred images.",
            {names[name]: pixels[: self.shown] for name, pixels in self._deblurred.items()},
            "Rows of images: generated, blurred, and reconstructed from the blurred images",
        )
        rows = {"blurred": "blurred image"} | {
            name: METHODS[name] for name in self._deblurred if name in METHODS
        }
        report.add_table(
            self._id("figure-5-numbers"),
            f"Numbers for Figure 5{about}",
            f"Means over {self.request.targets:,} generated images. Each row is compared with the "
            "image before the blur.",
            columns=[
                Column("dHash similarity", "{:.4f}", best="highest"),
                Column("absolute error", "{:.3g}", best="lowest"),
            ],
            rows=[
                Row(
                    label,
                    [
                        self._mean(report, f"figure-5-{name}", "dhash_similarity"),
                        self._mean(report, f"figure-5-{name}", "absolute_error"),
                    ],
                    emphasis=name == "aegan",
                    tag=NOT_IN_PAPER if name == "direct" else "",
                )
                for name, label in rows.items()
            ],
            row_title="Image",
        )

    def _draw(
        self,
        report: Report,
        id: str,
        title: str,
        caption: str,
        rows: Mapping[str, Pixels],
        alt: str,
    ) -> None:
        path = report.folder / "figures" / f"{self._id(id)}.png"
        figures.image_rows(rows, path, value_range=(0.0, 255.0))
        report.add_figure(self._id(id), title, caption, path, alt=alt)


def _targets(inverter: Inverter, latents: FloatArray) -> FloatArray:
    """Generate targets, clipped to the value range unless the generator may leave it."""
    images, manifest = inverter.generate(latents), inverter.manifest
    return images.clip(*manifest.value_range) if manifest.bounded else images


OURS_SHORT = {"precise": "precise", "from-encoder": "reconstruct"}
"""Short names of pyinv's recipes, for labels beside images."""


def _order(cells: Mapping[str, Cell], names: Mapping[str, str]) -> str:
    """Compare the order of our numbers with that of ``cells``, the paper's; return a sentence."""
    values = [cell.value for cell in cells.values()]
    if all(one > other for one, other in pairwise(values)):
        return "The order is the same as in the paper."
    here = sorted(cells, key=lambda name: cells[name].value, reverse=True)
    theirs = ", ".join(names[name] for name in cells)
    return (
        f"The order here, highest first, is {', '.join(names[name] for name in here)}; in the "
        f"paper it is {theirs}."
    )


def _add_differences(report: Report, request: Request, experiments: Sequence[_Experiment]) -> None:
    def joined(describe: Callable[[_Experiment], str]) -> str:
        """Return the experiments' descriptions without duplicates."""
        return "; ".join(dict.fromkeys(describe(one) for one in experiments))

    report.difference(
        "Encoders",
        "Adam, learning rate 0.0002, batch size 64; number of iterations not given",
        joined(lambda one: "; ".join(encoder.description for encoder in one.encoders.values())),
    )
    report.difference(
        "Image loss of AEGAN",
        "binary cross-entropy",
        joined(lambda one: _image_loss(one.encoders["aegan"])),
    )
    report.difference(
        "BiGAN",
        "trained on CelebA, with the networks of Tables 3 and 6",
        joined(_describe_bigan),
    )
    report.difference(
        "Table 1", "number of images not given", f"{request.targets:,} generated images"
    )
    report.difference(
        "Search",
        "20,000 images of CelebA; queries: 64 others in Table 2, a few in Figure 3",
        joined(
            lambda one: (
                f"{one.collection.description}; queries: {one.collection.bases_description} in "
                f"Table 2, {len(one.query_rows):,} in Figure 3"
            )
        ),
    )
    report.difference(
        "Labels",
        "40 attributes per image",
        joined(lambda one: "none" if one.collection.labels is None else "one per image, its class"),
    )
    bar = (
        f"a black bar of {BAR['height']:.0%} of the height and {BAR['width']:.0%} of the width, "
        f"{BAR['top']:.0%} from the top"
    )
    report.difference(
        "Degraded images",
        "a colour transform, sunglasses and a Gaussian blur; parameters not given",
        f"hue rotated by {HUE:g} degrees (colour images only), contrast {CONTRAST:g}, brightness "
        f"+{BRIGHTNESS:g} of the range; {bar}; a blur with a standard deviation of {BLUR:.3f} of "
        "the height",
    )
    report.difference("Hashes", "size not given", "64 bits, by the imagehash library")
    add_shared_differences(
        report,
        [experiment.generator for experiment in experiments],
        training="a DCGAN (Table 3) on all of CelebA; Adam, learning rate 0.0002, batch size 64",
        image="64×64, 3 channels",
        batch_norm="not given",
        draws="not given",
        seed=request.seed,
    )


def _describe_bigan(experiment: _Experiment) -> str:
    if "bigan" not in experiment.encoders:
        return why_not_trained(experiment.generator, "bigan")
    made = "" if experiment.collection.dataset else ", on images that the generator makes"
    return f"{experiment.encoders['bigan'].description}{made}"


def _image_loss(encoder: Encoder) -> str:
    """Return the image loss that AEGAN was trained with, as far as its bundle says."""
    settings = encoder.inverter.manifest.origin.get("configuration", {})
    loss = settings.get("image_loss", "not stated in its bundle")
    if loss == "auto":
        loss = "bce" if "bce" in encoder.inverter.manifest.losses else "mse"
    return {"bce": "binary cross-entropy", "mse": "mean squared error"}.get(loss, str(loss))
