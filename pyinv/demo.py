"""The demo: invert real and generated digits with pyinv's bundled generator.

``pyinv demo`` runs it. The generator was trained on scikit-learn's digits by
``examples/train_digits.py``; the demo needs neither training nor PyTorch.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pyinv.atomic_files import write_whole
from pyinv.bundle import Manifest
from pyinv.constraints import Clip, Constraint, NoConstraint, StochasticClip
from pyinv.inverter import Inverter
from pyinv.recipes import Recipe, Stage, default
from pyinv.result import Inversion
from pyinv.solvers import Cosine, GradientDescent

__all__ = ["BUNDLE", "DIGITS", "run"]

FloatArray = NDArray[np.float32]

DATA = Path(__file__).resolve().parent / "data"
BUNDLE = DATA / "digits.bundle"
"""The bundle of the digits generator."""
DIGITS = DATA / "digits.npz"
"""64 real digits that the generator never saw: ``images`` [64, 1, 16, 16], ``labels`` [64]."""

GENERATED = 128
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Latent errors that count as recovered: those of Lipton & Tripathi 2017, Table 1."""

# Plain gradient descent for the three clippings, as in the paper, which does not give the learning
# rate. Of 5, 8 and 12, each decaying to almost 0, 5 recovered most on this generator. A better
# solver hides the difference between the clippings (momentum 0.5 recovered 98 % with all three).
MAX_STEPS = 800
LEARNING_RATE = 5.0
LOSS_TOLERANCE = 1e-8
BATCH_SIZE = 64


@dataclass(frozen=True)
class _Method:
    name: str
    constraint: Constraint | None
    """None stands for pyinv's default recipe."""

    def recipe(self, manifest: Manifest) -> Recipe:
        if self.constraint is None:
            return default(manifest)
        stage = Stage(
            GradientDescent(LEARNING_RATE, schedule=Cosine(final=0.01)),
            constraint=self.constraint,
            max_steps=MAX_STEPS,
            loss_tolerance=LOSS_TOLERANCE,
        )
        return Recipe(self.name, (stage,))


DEFAULT = _Method("pyinv's default", None)
METHODS = (
    _Method("no clipping", NoConstraint()),
    _Method("standard clipping", Clip()),
    _Method("stochastic clipping", StochasticClip()),
    DEFAULT,
)


@dataclass(frozen=True)
class _Outcome:
    method: _Method
    targets: FloatArray
    inversion: Inversion
    seconds: float
    latents: FloatArray | None = None
    """The true latents of the targets, if known."""

    @property
    def latent_errors(self) -> FloatArray | None:
        """The mean squared error of each latent, [N]."""
        if self.latents is None:
            return None
        difference = self.inversion.latents - self.latents
        errors: FloatArray = np.mean(difference.reshape(len(difference), -1) ** 2, axis=1)
        return errors

    def describe(self) -> dict[str, Any]:
        inversion = self.inversion
        errors = self.latent_errors
        described: dict[str, Any] = {
            "method": self.method.name,
            "images": len(self.targets),
            "recovered": None,
            "mean_latent_error": None,
            "mean_image_error": float(np.mean(inversion.loss)),
            "rms_grey_levels": float(np.mean(_grey_levels(inversion.loss))),
            "rms_grey_levels_range": [
                float(end(_grey_levels(inversion.loss))) for end in (np.min, np.max)
            ],
            "mean_steps": float(np.mean(inversion.steps)),
            "seconds": self.seconds,
            "images_per_second": len(self.targets) / self.seconds,
            "status": inversion.counts(),
        }
        if errors is not None:
            described["recovered"] = {
                f"{threshold:g}": float(np.mean(errors < threshold)) for threshold in THRESHOLDS
            }
            described["mean_latent_error"] = float(np.mean(errors))
        return described


def run(
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    threads: int | None = None,
    quiet: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Invert real digits, then recover the latents of generated ones, and draw both.

    Args:
        output: folder for the picture; it must exist.
        seed: seed of all random draws.
        threads: CPU threads; None uses every core this process may use.
        quiet: print nothing.
        json: print nothing, because the caller prints the result.

    Returns:
        the results as JSON values: "real", "generated" (one entry per method), "picture" (its path)
        and the settings.

    Raises:
        BundleError: the demo's bundle is damaged.
        KeyboardInterrupt: Ctrl-C.
    """
    started = time.perf_counter()
    say: Callable[[str], None] = (
        (lambda text: None) if quiet or json else partial(print, flush=True)
    )
    inverter = Inverter(BUNDLE, batch_size=BATCH_SIZE, threads=threads)
    with np.load(DIGITS) as file:
        digits = np.ascontiguousarray(file["images"], dtype=np.float32)
    latents = inverter.sample(GENERATED, seed=seed)
    images = inverter.generate(latents)
    report: dict[str, Any] = {
        "seed": seed,
        "threads": inverter.threads,
        "latent_size": int(np.prod(inverter.manifest.latent_shape)),
        "image_shape": list(inverter.manifest.image_shape),
        "max_steps": MAX_STEPS,
        "loss_tolerance": LOSS_TOLERANCE,
    }
    say(_introduction(report, len(digits)))
    # Warm up, so that loading the graph does not count in the first method's time.
    first = METHODS[0].recipe(inverter.manifest)
    inverter.invert(images[:BATCH_SIZE], recipe=first.replace(max_steps=1), seed=seed)

    real = _invert(inverter, DEFAULT, digits, seed=seed)
    report["real"] = real.describe()
    say(_real_digits(report["real"]))

    say(_about_generated())
    outcomes = []
    report["generated"] = []
    for method in METHODS:
        outcomes.append(_invert(inverter, method, images, seed=seed, latents=latents))
        report["generated"].append(outcomes[-1].describe())
        say(_row(report["generated"][-1]))
    say(_legend())

    path = Path(output) / "reconstructions.png"
    drawing = time.perf_counter()
    _draw_reconstructions(outcomes[-1], real, path)
    report["picture"] = str(path)
    report["seconds"] = time.perf_counter() - started
    say(
        "3. Digits, reconstructions and differences, drawn in "
        f"{time.perf_counter() - drawing:.1f} s: {path}\n\n"
        f"{report['seconds']:.0f} s in all, on {inverter.threads} threads.\n\n"
        "Next, your own generator (needs PyTorch), such as\n"
        "  pyinv export my_models.py:make_generator -o my.bundle --latent-shape 100 --prior "
        "normal\n"
        "  pyinv invert my.bundle photos/ -o latents.npz"
    )
    return report


def _invert(
    inverter: Inverter,
    method: _Method,
    targets: FloatArray,
    *,
    seed: int,
    latents: FloatArray | None = None,
) -> _Outcome:
    started = time.perf_counter()
    recipe = method.recipe(inverter.manifest)
    inversion = inverter.invert(targets, recipe=recipe, seed=seed)
    seconds = time.perf_counter() - started
    if inversion.cancelled:
        raise KeyboardInterrupt
    return _Outcome(method, targets, inversion, seconds, latents)


def _grey_levels(loss: FloatArray) -> FloatArray:
    """Return the root mean square pixel difference, in the 255 grey levels of [-1, 1]."""
    levels: FloatArray = np.sqrt(loss) * np.float32(127.5)
    return levels


def _introduction(report: dict[str, Any], digits: int) -> str:
    _, height, width = report["image_shape"]
    return (
        "pyinv comes with a small generator of handwritten digits. It turns "
        f"{report['latent_size']} numbers, the latent z,\ninto a picture of {height}x{width} "
        "pixels. pyinv goes the other way: from a picture to the z behind it.\n\n"
        f"1. {digits} real digits, which the generator has never seen: the closest that it can make"
    )


def _real_digits(row: dict[str, Any]) -> str:
    low, high = row["rms_grey_levels_range"]
    psnr = 20 * np.log10(255 / row["rms_grey_levels"])
    return (
        f"   {_seconds(row)}. A pixel is off by {row['rms_grey_levels']:.1f} of 255 grey levels "
        f"(PSNR {psnr:.0f} dB), between {low:.1f} and\n   {high:.1f} by digit. No z gives "
        "these digits exactly, so this is how well the generator fits them.\n"
    )


def _about_generated() -> str:
    limits = "".join(f"{threshold:>8g}" for threshold in THRESHOLDS)
    return (
        f"2. {GENERATED} pictures made by the generator, from random latents: their latents are "
        "found again\n\n"
        f"   {'':<22}{'recovered, latent error below':^32}  {'image':>6}\n"
        f"   {'method':<22}{limits}  {'error':>6} {'steps':>7} {'time':>8}\n"
        f"   {'-' * 80}"
    )


def _row(row: dict[str, Any]) -> str:
    shares = "".join(f"{100 * share:>6.0f} %" for share in row["recovered"].values())
    return (
        f"   {row['method']:<22}{shares}  {row['rms_grey_levels']:>6.2f} {row['mean_steps']:>7.0f} "
        f"{_seconds(row):>8}"
    )


def _legend() -> str:
    return (
        "\n"
        "   recovered    share of latents whose mean squared error is below the number above; two\n"
        "                random latents differ by 0.67 on average\n"
        "   image error  root mean square pixel difference in grey levels (0 to 255), mean over "
        "images\n"
        "   steps        mean per image\n\n"
        "   The first three are plain gradient descent, as in Lipton & Tripathi 2017. The latents\n"
        "   lie in [-1, 1]; clipping moves a number outside to the edge (standard) or to a random\n"
        "   place inside (stochastic).\n"
    )


def _seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.1f} s"


# The picture of targets and reconstructions. Sizes in pixels.
ZOOM = 4
GAP = 6
COLUMNS = 16
LABEL_WIDTH = 170
INK = (32, 33, 36)
FAINT = (110, 114, 120)
PAPER = (255, 255, 255)
# The colour saturates at this difference, a quarter of the value range.
FULL_COLOUR = 0.5


def _draw_reconstructions(generated: _Outcome, real: _Outcome, path: Path) -> None:
    """Draw target, reconstruction and difference for some generated images and all real ones."""
    size = generated.targets.shape[-1] * ZOOM
    width = LABEL_WIDTH + COLUMNS * (size + GAP) + 2 * GAP
    title, text, small = (ImageFont.load_default(points) for points in (24, 17, 12))
    rows_of_real = len(real.targets) // COLUMNS
    band = 3 * (size + 2)
    height = 76 + band + 24 + 76 + rows_of_real * (band + 2 * GAP) + 40
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)

    def draw_band(outcome: _Outcome, chosen: range, top: int) -> None:
        found = outcome.inversion.images
        for row, label in enumerate(("target", "reconstruction", "difference")):
            middle = top + row * (size + 2) + size // 2
            draw.text((LABEL_WIDTH - 14, middle), label, INK, text, anchor="rm")
            for column, index in enumerate(chosen):
                target, made = outcome.targets[index, 0], found[index, 0]
                tile = (_grey(target), _grey(made), _difference(made - target))[row]
                place = (LABEL_WIDTH + column * (size + GAP), top + row * (size + 2))
                sheet.paste(tile.resize((size, size), Image.Resampling.NEAREST), place)

    top = 18
    heading = "Real digits, not seen in training: the closest that the generator can make"
    draw.text((20, top), heading, INK, title)
    top += 58
    for row in range(rows_of_real):
        draw_band(real, range(row * COLUMNS, (row + 1) * COLUMNS), top)
        top += band + 2 * GAP
    top += 18
    draw.text((20, top), "Generated images: the hidden latent is recovered", INK, title)
    top += 58
    every = len(generated.targets) // COLUMNS
    chosen = range(0, every * COLUMNS, every)
    draw_band(generated, chosen, top)
    top += band + 4
    errors = generated.latent_errors
    assert errors is not None
    draw.text((LABEL_WIDTH - 14, top), "error of these latents", FAINT, small, anchor="ra")
    for column, index in enumerate(chosen):
        centre = LABEL_WIDTH + column * (size + GAP) + size // 2
        draw.text((centre, top), f"{errors[index]:.0e}", FAINT, small, anchor="ma")
    top += 26
    draw.text(
        (LABEL_WIDTH, top + 4),
        "difference: red is too bright, blue too dark, white exact; full colour at a quarter of "
        "the value range",
        FAINT,
        small,
    )
    picture = io.BytesIO()
    sheet.save(picture, format="PNG")
    write_whole(path, picture.getbuffer())


def _grey(image: FloatArray) -> Image.Image:
    return Image.fromarray(np.uint8(np.clip((image + 1) * 127.5, 0, 255).round()))


def _difference(difference: FloatArray) -> Image.Image:
    """Draw a difference: white at 0, red above, blue below, off-white so that tiles stand out."""
    share = np.clip(difference / FULL_COLOUR, -1, 1)[..., None]
    red, blue = np.array([178, 24, 43]), np.array([33, 102, 172])
    colour = 247 + np.maximum(share, 0) * (red - 247) + np.maximum(-share, 0) * (blue - 247)
    return Image.fromarray(np.uint8(colour.round()))
