"""Luo et al. 2017, "Learning inverse mapping by autoencoder based generative adversarial nets".

Tables 1 and 2 and Figures 2 to 5, on any generator: encoders trained by three methods, the
similarity of their reconstructions, and image search by their latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from pyinv.extras import install_command
from pyinv.inverter import Inverter
from pyinv.papers.collection import Collection, obtain_collection
from pyinv.papers.differences import add_shared_differences, joined
from pyinv.papers.encoders import (
    Encoder,
    match_encoders,
    open_encoders,
    to_pixels,
    train_encoders,
    why_not_trained,
)
from pyinv.papers.experiment import Experiment, run_experiments
from pyinv.papers.generators import Generator, GivenData, obtain_generators
from pyinv.papers.pixels import FloatArray, Pixels, absolute_error
from pyinv.papers.plan import Planned
from pyinv.papers.precise import (
    COST_COLUMNS,
    NOT_IN_PAPER,
    PRECISE,
    describe_costs,
    precise_recipe,
    reconstruct_recipe,
    why_not_run,
)
from pyinv.papers.report import Cell, Column, Paper, Row, literal
from pyinv.papers.request import Request
from pyinv.priors import Normal, Uniform

__all__ = ["PAPER", "degrade", "reproduce"]

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
SHORT = {"precise": "precise", "from-encoder": "reconstruct"}
"""Short names of pyinv's recipes, for labels beside images."""
UNUSED = ("max_steps", "learning_rate")
"""The requested settings that have no effect here."""

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
PIXEL_RANGE = (0.0, 255.0)


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
    opened = obtain_generators(
        request,
        paper="Luo et al.",
        configuration=lambda data: "lipton-32",
        priors=(Uniform, Normal) if request.generators else (Uniform,),
        overshoots=True,
    )
    matched = match_encoders(given, opened)
    data = GivenData(request)
    searched = {one.key: obtain_collection(one, data, request) for one in opened}
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
    settings = {name: value for name, value in request.describe().items() if name not in UNUSED}
    report = run_experiments(experiments, PAPER, request, settings=settings)
    _add_differences(experiments)
    for experiment in experiments:
        request.say(f"searching: {experiment.generator.title}")
        experiment.add_results()
    return report.write()


def _check_libraries() -> None:
    modules = {"imagehash": "imagehash", "sklearn": "scikit-learn", "scipy": "SciPy"}
    for module, name in modules.items():
        if find_spec(module) is None:
            raise DependencyError(f"this report needs {name}: {install_command('papers')}")


def _configuration(generator: Generator) -> str:
    """Return the name of the configuration that trains encoders for a generator's images."""
    return "luo-32" if max(generator.manifest.image_shape[1:]) <= LARGEST_QUICK else "luo"


class _Experiment(Experiment):
    """The tables and figures of one generator."""

    def __init__(
        self,
        generator: Generator,
        encoders: Mapping[str, Encoder],
        request: Request,
        collection: Collection,
    ) -> None:
        super().__init__(generator, request)
        self.encoders = encoders
        self.collection = collection
        self.latents = self.inverter.sample(request.targets, seed=request.seed)
        self.images = _targets(self.inverter, self.latents)
        self.shown = min(SHOWN, request.targets)
        recipes = {
            "precise": precise_recipe(self.manifest),
            "from-encoder": reconstruct_recipe(self.manifest, start="encoder"),
            "from-draw": reconstruct_recipe(self.manifest),
        }
        self.recipes = {name: one for name, one in recipes.items() if one is not None}
        random = np.random.default_rng(request.seed + 2)
        count = min(request.targets, len(collection.pixels))
        self.query_rows = np.sort(random.choice(len(collection.pixels), count, replace=False))
        self.methods = {name: METHODS[name] for name in METHODS if name in encoders}
        self.searches = {
            name: label
            for name, label in SEARCHES.items()
            if name in encoders or name not in METHODS
        }
        # By method, some images and their reconstructions.
        self._shown: dict[str, tuple[Pixels, Pixels]] = {}

    @cached_property
    def plan(self) -> list[Planned]:
        """Return the runs, all with pyinv's own recipes."""
        starts = {"from-encoder": self.encoders["aegan"].inverter.encode(self.images)}
        return [
            self.planned(
                f"table-1-{method}",
                OURS[method],
                self.images,
                recipe,
                true_latents=self.latents,
                init=starts.get(method),
            )
            for method, recipe in self.recipes.items()
        ]

    def add_results(self) -> None:
        """Add the tables and figures to the report."""
        self._add_reconstructions()
        self._add_ranks()
        self._add_labels()
        self._add_blurred()
        self._add_result()
        self._add_table_1()
        self._add_costs()
        self._add_figure_2()
        self._add_figure_3()
        self._add_figure_4()
        self._add_table_2()
        self._add_figure_5()

    # -- runs and their arrays

    def _add_reconstructions(self) -> None:
        """Add Table 1's arrays to the report."""
        for method, encoder in self.encoders.items():
            inverter, images = encoder.inverter, self.images
            if method == "bigan":
                # BiGAN trains its own generator, so its targets are that generator's images.
                made = inverter.sample(self.request.targets, seed=self.request.seed)
                images = _targets(inverter, made)
            latents = inverter.encode(images)
            arrays = self._compare(method, images, inverter.generate(latents), encoder.value_range)
            if method != "bigan":
                arrays["latent_error"] = evaluation.latent_error(self.latents, latents)
            self.add_run(
                f"table-1-{method}",
                METHODS[method],
                arrays=arrays,
                facts={"encoder": encoder.description},
            )
        for method, planned in zip(self.recipes, self.plan, strict=True):
            inversion = self.done[planned.id]
            arrays = self._compare(method, self.images, inversion.images, self.value_range)
            arrays["latent_error"] = evaluation.latent_error(self.latents, inversion.latents)
            self.add_inversion(planned.id, planned.label, arrays | self.cost_arrays(planned.id))

    def _compare(
        self, method: str, images: FloatArray, found: FloatArray, value_range: tuple[float, float]
    ) -> dict[str, Any]:
        """Return the arrays of Table 1's similarities; keep some of the images to show."""
        self._shown[method] = (
            to_pixels(images[: self.shown], value_range),
            to_pixels(found[: self.shown], value_range),
        )
        # Hashes are computed from pixels as an image file stores them.
        inside = images.clip(*value_range), found.clip(*value_range)
        arrays: dict[str, Any] = {
            f"{kind}_similarity": evaluation.hash_similarity(*inside, kind, value_range=value_range)
            for kind in ("dhash", "phash")
        }
        return arrays | {"absolute_error": absolute_error(images, found, value_range)}

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

    @cached_property
    def _features(self) -> dict[str, NDArray[Any]]:
        """The collection's features by search."""
        return {search: self._describe(search, self.collection.pixels) for search in self.searches}

    def _find(self, search: str, pixels: Pixels, k: int) -> NDArray[np.int64]:
        """Return the rows of the collection that a search finds for the query images, [M, k]."""
        found = evaluation.search(
            self._features[search],
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

    def _add_ranks(self) -> None:
        """Add the rank at which each search finds the original of a degraded image."""
        for search, name in self.searches.items():
            self.add_run(
                f"figure-3-{search}",
                f"degraded images searched by {name}",
                arrays={
                    f"rank, {DEGRADATIONS[kind]}": evaluation.rank_of(
                        self._features[search],
                        self._describe(search, queries),
                        self.query_rows,
                        metric=METRICS.get(search, "euclidean"),
                    )
                    for kind, queries in self._queries.items()
                },
            )

    def _add_labels(self) -> None:
        """Add the labels that Table 2 compares."""
        labels, base_labels = self.collection.labels, self.collection.base_labels
        if labels is None or base_labels is None:
            return
        k = min(FOUND, len(labels))
        random = np.random.default_rng(self.request.seed + 4)
        chance = random.integers(len(labels), size=(len(base_labels), k))
        found = {name: self._find(name, self.collection.bases, k) for name in self.searches}
        for search, rows in {**found, "chance": chance}.items():
            self.add_run(
                f"table-2-{search}",
                f"similar images by {SEARCHES.get(search, 'chance')}",
                arrays={
                    "labels": base_labels,
                    "labels of the first found": labels[rows[:, 0]],
                    f"labels of the first {k}": labels[rows],
                },
            )

    @cached_property
    def _deblurred(self) -> dict[str, Pixels]:
        """The generated images, the same blurred, and the reconstructions of the blurred ones."""
        sharp = to_pixels(self.images, self.value_range)
        blurred = degrade(sharp, "blur")
        methods = ("aegan", "direct")
        found = {method: self.encoders[method].reconstruct(blurred) for method in methods}
        return {"generated": sharp, "blurred": blurred, **found}

    def _add_blurred(self) -> None:
        """Add the similarity of blurred images, and of their reconstructions, to the originals."""
        sharp, *others = (to_range(pixels, (0.0, 1.0)) for pixels in self._deblurred.values())
        for name, images in zip(list(self._deblurred)[1:], others, strict=True):
            self.add_run(
                f"figure-5-{name}",
                f"blurred, {METHODS.get(name, 'not reconstructed')}",
                arrays={
                    "dhash_similarity": evaluation.hash_similarity(sharp, images),
                    "absolute_error": evaluation.mean_absolute_error(sharp, images),
                },
            )

    # -- parts of the report

    def _similarity(self, search: str, found: str, published: float | None = None) -> Cell:
        run = f"table-2-{search}"
        return self.report.compute(
            "label_similarity",
            labels=self.ref(run, "labels"),
            found=self.ref(run, found),
            published=published,
        )

    def _add_result(self) -> None:
        cells = {
            method: self.mean(f"table-1-{method}", "dhash_similarity") for method in self.methods
        }
        results = [f"{{{method}:.4f}} ({name})" for method, name in self.methods.items()]
        paragraphs = [
            "Mean dHash similarity between generated images and their reconstructions: "
            f"{', '.join(results)}. {_order(cells, METHODS)}"
        ]
        names = {method: method.replace("-", "_") for method in self.recipes}
        cells |= {
            name: self.mean(f"table-1-{method}", "dhash_similarity")
            for method, name in names.items()
        }
        results = [f"{{{name}:.4f}} with {OURS[method]}" for method, name in names.items()]
        paragraphs.append(
            f"Not in the paper: {'; '.join(results)}. These optimise the latent, whereas an "
            "encoder takes a single pass; the table of costs compares them."
        )
        if self.collection.labels is not None:
            found = {
                search: self._similarity(search, "labels of the first found") for search in TABLE_2
            }
            cells |= {f"labels_{search}": cell for search, cell in found.items()}
            paragraphs.append(
                "The first image found has the label of the query image in {labels_aegan:.1%} of "
                "searches by AEGAN's latents and {labels_dhash:.1%} of searches by dHash. "
                f"{_order(found, SEARCHES)}"
            )
        self.add_text("result", "Result", paragraphs, cells=cells)

    def _table_1_cells(self, method: str) -> list[Cell | None]:
        run = f"table-1-{method}"
        return [
            self.mean(run, "dhash_similarity", TABLE_1.get(method)),
            self.mean(run, "phash_similarity"),
            self.mean(run, "absolute_error"),
            None if method == "bigan" else self.mean(run, "latent_error"),
        ]

    def _why_not(self, method: str) -> str:
        """Return why a method of Table 1 is not run; "" if it is run."""
        if method in self.recipes or method in self.methods:
            return ""
        if method in OURS:
            return why_not_run(self.manifest)
        return why_not_trained(self.generator, method)

    def _add_table_1(self) -> None:
        own = "; for BiGAN, images of its own generator" if "bigan" in self.methods else ""
        self.add_table(
            "table-1",
            "Table 1: Similarity of reconstructions and originals",
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
            rows=[
                Row(
                    name,
                    [] if (why := self._why_not(method)) else self._table_1_cells(method),
                    emphasis=method == "aegan",
                    tag=NOT_IN_PAPER if method in OURS else "",
                    text=why,
                )
                for method, name in (METHODS | OURS).items()
            ],
        )

    def _add_costs(self) -> None:
        self.add_table(
            "costs",
            "Cost per latent, with and without starting from an encoder",
            f"Means over the images of Table 1. {describe_costs(self.manifest.latent_size)} The "
            "encoder's single pass is not counted.",
            columns=[Column("absolute error", "{:.3g}", best="lowest"), *COST_COLUMNS],
            rows=[
                Row(
                    OURS[method],
                    [
                        self.mean(f"table-1-{method}", "absolute_error"),
                        *self.cost_cells(f"table-1-{method}", recipe),
                    ],
                    tag=NOT_IN_PAPER,
                )
                for method, recipe in self.recipes.items()
            ],
        )

    def _add_figure_2(self) -> None:
        rows = {"generated": self._shown["aegan"][0]}
        rows |= {
            (METHODS | SHORT)[method]: found
            for method, (_, found) in self._shown.items()
            if method not in ("bigan", "from-draw")
        }
        below = ""
        if "bigan" in self._shown:
            rows["BiGAN's own"], rows["BiGAN"] = self._shown["bigan"]
            below = ". Below: images of BiGAN's own generator and their reconstructions"
        self.draw_rows(
            "figure-2",
            "Figure 2: Reconstructions",
            f"The first {self.shown} of {self.request.targets:,} generated images, and their "
            f"reconstructions by each method{below}.",
            rows,
            alt="Rows of images: generated images, and their reconstructions by each method",
            value_range=PIXEL_RANGE,
        )

    def _add_table_2(self) -> None:
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
                        self._similarity(search, "labels of the first found", TABLE_2.get(search)),
                        self._similarity(search, f"labels of the first {k}"),
                    ],
                    emphasis=search == "aegan",
                    tag="" if search in TABLE_2 else NOT_IN_PAPER,
                )
                for search, name in (self.searches | {"chance": "random images"}).items()
            ]
        self.add_table(
            "table-2",
            "Table 2: Label similarity of search results",
            f"The query images are {literal(self.collection.bases_description)}; the search runs "
            f"over {literal(self.collection.description)}. Label similarity is the share of labels "
            "that the query and a result have in common. Images here have one label, their class. "
            "In the paper they have 40 attributes, many of which most images share, so the two "
            "scales are not comparable.",
            columns=columns,
            rows=rows,
            row_title="Search by",
        )

    def _add_figure_4(self) -> None:
        bases = self.collection.bases[: self.shown]
        self.draw_rows(
            "figure-4",
            "Figure 4: Similar images",
            f"The first {len(bases)} of {literal(self.collection.bases_description)}, and the "
            f"first image that each search finds among {literal(self.collection.description)}.",
            {"query": bases, **self._first_found(("aegan", "dhash"), bases)},
            alt="Rows of images: queries, and the images found by AEGAN's latents and by dHash",
            value_range=PIXEL_RANGE,
        )

    def _first_found(self, searches: Sequence[str], queries: Pixels) -> dict[str, Pixels]:
        """Return the first image that each search finds for each query."""
        return {
            SEARCHES[search]: self.collection.pixels[self._find(search, queries, 1)[:, 0]]
            for search in searches
        }

    def _add_figure_3(self) -> None:
        originals = self.collection.pixels[self.query_rows[: self.shown]]
        for kind, queries in self._queries.items():
            some = queries[: self.shown]
            self.draw_rows(
                f"figure-3-{kind}",
                f"Figure 3, {DEGRADATIONS[kind]}: Search results",
                f"The first {len(some)} of {len(queries):,} queries, which are degraded images of "
                f"{literal(self.collection.description)}, with their originals and the first image "
                "that each search finds.",
                {
                    "original": originals,
                    DEGRADATIONS[kind]: some,
                    **self._first_found(IN_PAPER, some),
                },
                alt="Rows of images: originals, queries, and the image that each search finds",
                value_range=PIXEL_RANGE,
            )

        def cells(search: str, kind: str) -> list[Cell]:
            ranks = self.ref(f"figure-3-{search}", f"rank, {DEGRADATIONS[kind]}")
            first = self.report.compute("hit_rate", ranks=ranks)
            return [first, self.report.compute("median", values=ranks)]

        self.add_table(
            "figure-3-numbers",
            "Numbers for Figure 3",
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
                    [cell for kind in DEGRADATIONS for cell in cells(search, kind)],
                    emphasis=search == "aegan",
                    tag="" if search in IN_PAPER else NOT_IN_PAPER,
                )
                for search, name in self.searches.items()
            ],
            row_title="Search by",
        )

    def _add_figure_5(self) -> None:
        names = {"generated": "generated", "blurred": "blurred", **METHODS}
        self.draw_rows(
            "figure-5",
            "Figure 5: Reconstructions of blurred images",
            f"The first {self.shown} of {self.request.targets:,} generated images, the same images "
            "under a Gaussian blur, and the reconstructions from the blurred images.",
            {names[name]: pixels[: self.shown] for name, pixels in self._deblurred.items()},
            alt="Rows of images: generated, blurred, and reconstructed from the blurred images",
            value_range=PIXEL_RANGE,
        )
        self.add_table(
            "figure-5-numbers",
            "Numbers for Figure 5",
            f"Means over {self.request.targets:,} generated images. Each row is compared with the "
            "image before the blur.",
            columns=[
                Column("dHash similarity", "{:.4f}", best="highest"),
                Column("absolute error", "{:.3g}", best="lowest"),
            ],
            rows=[
                Row(
                    METHODS.get(name, "blurred image"),
                    [
                        self.mean(f"figure-5-{name}", "dhash_similarity"),
                        self.mean(f"figure-5-{name}", "absolute_error"),
                    ],
                    emphasis=name == "aegan",
                    tag=NOT_IN_PAPER if name == "direct" else "",
                )
                for name in self._deblurred
                if name != "generated"
            ],
            row_title="Image",
        )


def _targets(inverter: Inverter, latents: FloatArray) -> FloatArray:
    """Generate targets, clipped to the value range unless the generator may leave it."""
    images, manifest = inverter.generate(latents), inverter.manifest
    return images.clip(*manifest.value_range) if manifest.bounded else images


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


def _add_differences(experiments: Sequence[_Experiment]) -> None:
    report, request = experiments[0].report, experiments[0].request
    report.difference(
        "Encoders",
        "Adam, learning rate 0.0002, batch size 64; number of iterations not given",
        joined(
            "; ".join(encoder.description for encoder in one.encoders.values())
            for one in experiments
        ),
    )
    report.difference(
        "Image loss of AEGAN",
        "binary cross-entropy",
        joined(_image_loss(one.encoders["aegan"]) for one in experiments),
    )
    report.difference(
        "BiGAN",
        "trained on CelebA, with the networks of Tables 3 and 6",
        joined(_describe_bigan(one) for one in experiments),
    )
    report.difference(
        "Table 1", "number of images not given", f"{request.targets:,} generated images"
    )
    report.difference(
        "Search",
        "20,000 images of CelebA; queries: 64 others in Table 2, a few in Figure 3",
        joined(
            f"{one.collection.description}; queries: {one.collection.bases_description} in Table "
            f"2, {len(one.query_rows):,} in Figure 3"
            for one in experiments
        ),
    )
    report.difference(
        "Labels",
        "40 attributes per image",
        joined(
            "none" if one.collection.labels is None else "one per image, its class"
            for one in experiments
        ),
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
        experiments,
        training="a DCGAN (Table 3) on all of CelebA; Adam, learning rate 0.0002, batch size 64",
        image="64×64, 3 channels",
        batch_norm="not given",
        draws="not given",
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
