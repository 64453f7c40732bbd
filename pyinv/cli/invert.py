"""``pyinv invert``: find the latents of images."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyinv import recipes
from pyinv.array_files import read_array
from pyinv.atomic_files import OutputFile, OutputFolder
from pyinv.bundle import Bundle, Manifest
from pyinv.cli import job
from pyinv.cli.console import Console
from pyinv.cli.exit_codes import DONE, INTERRUPTED, NON_FINITE, TIMED_OUT
from pyinv.cli.options import (
    add_conditions,
    add_machine_options,
    add_overwrite,
    add_size_limits,
    add_strict,
    add_timeout,
    conditions,
    input_files,
    machine_options,
    real,
    whole,
)
from pyinv.conditions import condition_rows
from pyinv.constraints import CONSTRAINTS, parse_constraint
from pyinv.errors import InputError, OutputError, RunError
from pyinv.images import (
    FITS,
    load_named_images,
    load_weights,
    not_pictures,
    picture_names,
    save_images,
)
from pyinv.interrupts import deferred
from pyinv.recipes import Recipe
from pyinv.result import Status
from pyinv.uncertainty import Uncertainty
from pyinv.weights import check_weights, mean_values

if TYPE_CHECKING:
    from pyinv.result import Inversion

__all__ = ["add_parser", "run"]

_EPILOG = """\
OUT.npz contains one row per target, in the order given (folders in natural order):
  latents, loss, psnr (dB), status (0 converged to the tolerance, 1 converged: no further progress,
  2 all steps used, 3 all steps used and still improving, 4 not finite, 5 cancelled), steps,
  attempts, normal_equations, sources (the file of each image), and trace with --trace-every;
  with --uncertainty also standard_error (per latent component), condition_number, identifiable
  (1 if the image determines the latent) and noise (per pixel, in the bundle's value range).
Read it with numpy.load, or pyinv.Inversion.load and pyinv.Uncertainty.load.

examples:
  pyinv invert faces.bundle photos/ -o latents.npz
  pyinv invert faces.bundle a.png b.png -o latents.npz --max-steps 2000 --save-images seen
  pyinv invert faces.bundle made.npy -o latents.npz --recipe precise --uncertainty
  pyinv invert faces.bundle noisy/ -o latents.npz --recipe reconstruct --uncertainty --noise 0.03
  pyinv invert faces.bundle images.npy -o latents.npz --recipe lipton --constraint clip
  pyinv invert vae.bundle images.npy -o latents.npz --recipe egan --constraint hard_cutoff:c=3
  pyinv invert sounds.bundle recordings/ -o latents.npz
  pyinv invert faces.bundle torn/ -o latents.npz --recipe reconstruct --weights mask.png

With a folder OUT/ it is a job, for any number of images: Parquet files of --shard-size rows. A job
that was ended, by whatever, is resumed by the same command.

  pyinv invert faces.bundle photos/ -o latents/
  pyinv invert faces.bundle photos.parquet -o latents/ --image-column image --id-column key
  pyinv invert faces.bundle photos/ -o /shared/latents/ --shard 2/8
  pyinv merge /shared/latents/ -o latents.parquet
"""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "invert",
        parents=[shared],
        help="find the latents of images",
        description="Find the latents of images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or address")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="image files, folders, .npy or .npz files; for generators of audio also .wav files; "
        "for jobs also lists of files (.txt), IDX, Parquet and Arrow files",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="file to write the latents to, OUT.npz; or a job's folder, OUT/",
    )
    parser.add_argument(
        "--save-images", metavar="DIR", help="folder to write each latent's image G(z) to, as a PNG"
    )
    add_overwrite(parser)
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="crop",
        help="how to fit images of another size: cover and crop, or stretch [%(default)s]",
    )

    method = parser.add_argument_group("method", "each option overrides the recipe's setting")
    method.add_argument(
        "--recipe",
        default="default",
        metavar="NAME",
        help=f"one of {', '.join(recipes.RECIPES)} [%(default)s]; use precise for generated images",
    )
    method.add_argument(
        "--effort",
        choices=recipes.EFFORTS,
        help="how much the recipe default may spend on an image [default]",
    )
    whole(method, "--max-steps", "maximum steps per stage")
    whole(method, "--restarts", "further attempts for targets not converged")
    real(method, "--learning-rate", "learning rate of first-order stages")
    method.add_argument(
        "--loss", metavar="NAME", help="loss to minimise; `pyinv info` lists the bundle's"
    )
    real(method, "--loss-tolerance", "a target converges at this loss")
    method.add_argument(
        "--constraint",
        metavar="NAME[:A=1,...]",
        help=f"none, {', '.join(name for name in CONSTRAINTS if name != 'no_constraint')}",
    )
    method.add_argument("--seed", type=int, default=0, help="random seed [%(default)s]")
    method.add_argument(
        "--init",
        metavar="FILE",
        help='.npy or .npz with initial latents, or "encoder" for a bundle that has one',
    )
    add_strict(method)
    add_conditions(method)
    method.add_argument(
        "--weights",
        metavar="FILE",
        help="how much each pixel counts, such as a mask, for a bundle exported with --weights: "
        ".npy or .npz of numbers >= 0 that broadcast to the images, or for pictures an image file, "
        "one for all targets, with black for 0",
    )
    whole(method, "--trace-every", "record the loss every N steps", default=0)

    known = parser.add_argument_group(
        "uncertainty", "for bundles with the normal equations of mse, which `pyinv export` writes"
    )
    known.add_argument(
        "--uncertainty",
        action="store_true",
        help="also estimate how far each latent may be from the true one; for images that are not "
        "reproduced exactly, this takes about as long as --recipe reconstruct",
    )
    known.add_argument(
        "--noise",
        type=float,
        metavar="S",
        help="standard deviation of the pixel noise, in the bundle's value range, for "
        "--uncertainty and reconstruct [estimated]",
    )

    job.add_options(parser)
    add_machine_options(parser, batch_size=True)
    add_size_limits(parser)
    add_timeout(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the command; return its exit code."""
    from pyinv.inverter import Inverter

    if job.is_job(arguments.output):
        return _run_job(arguments, console)
    if Path(arguments.output).suffix.lower() != ".npz":
        raise OutputError(
            f"{arguments.output}: expected a file name that ends in .npz, or a folder's that ends "
            "in / for a job"
        )
    job.check_options(arguments)
    with contextlib.ExitStack() as outputs:
        output = outputs.enter_context(
            OutputFile(
                arguments.output, overwrite=arguments.overwrite, inputs=input_files(arguments)
            )
        )
        folder = None
        if arguments.save_images is not None:
            folder = outputs.enter_context(OutputFolder(arguments.save_images))
        bundle = Bundle.open(arguments.bundle)
        if folder is not None and not bundle.manifest.is_picture:
            raise InputError(
                f"--save-images: {not_pictures(bundle.manifest)}; leave it out, and use "
                f"`pyinv generate {arguments.bundle} --latents {arguments.output} -o OUT.npy`"
            )
        init = _init(arguments.init)
        weights = None
        if arguments.weights is not None:
            weights = load_weights(arguments.weights, bundle.manifest, fit=arguments.fit)
        recipe = _recipe(arguments, bundle.manifest, weights)
        inverter = Inverter(bundle, **machine_options(arguments))
        if arguments.uncertainty:
            inverter.check_uncertainty(noise=arguments.noise, weights=weights)
        if isinstance(init, str):
            bundle.manifest.encode(inverter.runtime)  # before the images are read
        given = conditions(arguments, bundle.manifest)
        images, sources = load_named_images(arguments.images, bundle.manifest, fit=arguments.fit)
        condition_rows(bundle.manifest.conditions, given, len(images))
        names = _picture_names(sources)
        if folder is not None:
            pictures = (f"{name}.png" for name in names)
            folder.check_free(pictures, overwrite=arguments.overwrite, inputs=sources)
        console.message(f"inverting {len(images)} images with recipe {recipe.name}")
        start = time.perf_counter()
        failure: Exception | None = None
        received = outputs.enter_context(deferred())  # until the results are written
        try:
            inversion = inverter.invert(
                images,
                recipe=recipe,
                seed=arguments.seed,
                init=init,
                conditions=given,
                weights=weights,
                trace_every=arguments.trace_every,
                strict=arguments.strict,
                progress=console.shows_progress,
                timeout=arguments.timeout,
            )
        except RunError as error:
            if error.inversion is None:
                raise
            inversion, failure = error.inversion, error
        uncertainty: Uncertainty | None = None
        if arguments.uncertainty:
            uncertainty = Uncertainty.unknown(len(images), bundle.manifest.latent_shape)
            if not inversion.cancelled and not received():
                try:
                    uncertainty = inverter.uncertainty(
                        inversion,
                        images,
                        noise=arguments.noise,
                        conditions=given,
                        weights=weights,
                        progress=console.shows_progress,
                        timeout=_left(arguments.timeout, start),
                    )
                except Exception as error:  # still write the inversion
                    uncertainty, failure = getattr(error, "uncertainty", None) or uncertainty, error
        seconds = time.perf_counter() - start
        cancelled = inversion.cancelled or (uncertainty is not None and uncertainty.cancelled)
        cancelled = cancelled or received()
        output.write(
            lambda file: inversion.save(
                file, images=False, sources=sources, uncertainty=uncertainty
            )
        )
        if folder is not None and not cancelled:
            save_images(
                inversion.images,
                folder.path,
                bundle.manifest.value_range,
                names=names,
            )
    _report(arguments, console, inversion, uncertainty, sources, seconds)
    if failure is not None:
        raise failure
    if received():
        return INTERRUPTED
    if cancelled:
        return INTERRUPTED if arguments.timeout is None else TIMED_OUT
    return NON_FINITE if np.any(inversion.status == Status.NON_FINITE) else DONE


def _run_job(arguments: argparse.Namespace, console: Console) -> int:
    for name in ("weights", "trace_every", "strict", "overwrite", "timeout"):
        if getattr(arguments, name):
            raise InputError(
                f"--{name.replace('_', '-')}: not for jobs; leave it out, or write to a .npz file"
            )
    if arguments.init not in (None, "encoder"):
        raise InputError('--init: jobs take only "encoder"; leave it out, or write to a .npz file')
    bundle = Bundle.open(arguments.bundle)
    return job.run(arguments, console, bundle, _recipe(arguments, bundle.manifest, None))


def _left(timeout: float | None, start: float) -> float | None:
    """Return the seconds that are left of a time limit; a moment at least."""
    return None if timeout is None else max(timeout - (time.perf_counter() - start), 1e-3)


def _init(given: str | None) -> Any:
    return given if given in (None, "encoder") else read_array(given, "latents")


def _recipe(arguments: argparse.Namespace, manifest: Manifest, weights: Any) -> Recipe:
    """Return the named recipe with the command line's changes."""
    changes = {
        "max_steps": arguments.max_steps,
        "restarts": arguments.restarts,
        "learning_rate": arguments.learning_rate,
        "loss_tolerance": arguments.loss_tolerance,
        "constraint": None
        if arguments.constraint is None
        else parse_constraint(arguments.constraint),
    }
    start = "encoder" if arguments.init == "encoder" else None
    if arguments.effort is not None and arguments.recipe != "default":
        raise InputError(
            f"--effort is for --recipe default, not for {arguments.recipe}; leave one of them out"
        )
    if arguments.recipe == "reconstruct":
        known_noise = arguments.noise is not None
        values = mean_values(check_weights(weights, manifest), known_noise=known_noise)
        recipe = recipes.reconstruct(
            manifest, arguments.noise, start=start or "mean", n_values=values
        )
    elif arguments.noise is not None and not arguments.uncertainty:
        raise InputError(
            "--noise is for --uncertainty and --recipe reconstruct; leave it out, or ask for one "
            "of them"
        )
    else:
        recipe = recipes.get(
            arguments.recipe,
            manifest,
            start=start,
            effort=arguments.effort,
            initial=arguments.init is not None and start is None,
        )
    recipe = recipe.replace(**{name: value for name, value in changes.items() if value is not None})
    if arguments.loss is not None:
        recipe = recipes.with_loss(recipe, arguments.loss, manifest)
    return recipe.fit(manifest.prior)


def _report(
    arguments: argparse.Namespace,
    console: Console,
    inversion: Inversion,
    uncertainty: Uncertainty | None,
    sources: list[str],
    seconds: float,
) -> None:
    counts = inversion.counts()
    finished = len(inversion) - counts["cancelled"]
    if inversion.cancelled:
        console.message(f"ended early; {finished} of {len(inversion)} targets are done")
    console.message(repr(inversion).strip("<>"))
    if uncertainty is not None:
        if uncertainty.cancelled:
            known = int(np.isfinite(uncertainty.noise).sum())
            console.message(f"ended early; the uncertainty of {known} targets is known")
        console.message(repr(uncertainty).strip("<>"))
    if inversion.hint and inversion.hint not in console.warned:
        console.message(inversion.hint)
    console.message(
        f"{seconds:.1f} s, {finished / max(seconds, 1e-9):.3g} images/s; wrote {arguments.output}"
    )
    console.result(
        {
            "bundle": arguments.bundle,
            "recipe": inversion.recipe,
            "seed": inversion.seed,
            "cancelled": inversion.cancelled or (uncertainty is not None and uncertainty.cancelled),
            "seconds": seconds,
            "images_per_second": finished / max(seconds, 1e-9),
            "output": arguments.output,
            "save_images": arguments.save_images,
            "counts": counts,
            "psnr": _median(inversion.psnr),
            "hint": inversion.hint,
            "targets": [
                _target(inversion, uncertainty, row, source) for row, source in enumerate(sources)
            ],
        }
    )


def _median(values: NDArray[np.float32] | None) -> float | None:
    if values is None or np.isnan(values).all():
        return None
    return float(np.nanmedian(values))


def _target(
    inversion: Inversion, uncertainty: Uncertainty | None, row: int, source: str
) -> dict[str, Any]:
    """Return the report's entry for one target."""
    described = {
        "source": source,
        "status": Status(int(inversion.status[row])).name.lower(),
        "loss": float(inversion.loss[row]),
        "psnr": None if inversion.psnr is None else float(inversion.psnr[row]),
        "steps": int(inversion.steps[row]),
        "attempts": int(inversion.attempts[row]),
        "normal_equations": int(inversion.normal_equations[row]),
    }
    if uncertainty is not None:
        described["median_standard_error"] = float(np.median(uncertainty.standard_error[row]))
        for name in ("condition_number", "identifiable", "noise"):
            described[name] = getattr(uncertainty, name)[row].item()
    return described


def _picture_names(sources: list[str]) -> list[str]:
    """Return a file name for each target: its number, then the file it came from."""
    numbers = picture_names(len(sources))
    return [
        f"{number}-{Path(source).stem}" for number, source in zip(numbers, sources, strict=True)
    ]
