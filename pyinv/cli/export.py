"""``pyinv export``: export a PyTorch generator, or one in an ONNX file, to a bundle."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from pyinv.atomic_files import refuse_inputs
from pyinv.bundle import RUNTIMES, Bundle
from pyinv.cli.console import Console
from pyinv.cli.options import add_overwrite, add_strict
from pyinv.conditions import Condition, Label, OneHot
from pyinv.errors import DependencyError, InputError
from pyinv.extras import install_command
from pyinv.priors import Normal, Prior, Uniform

__all__ = ["add_parser", "parse_input", "parse_output_item", "parse_prior", "parse_shape", "run"]

_EPILOG = """\
examples:
  pyinv export my_models.py:make_generator -o faces.bundle --latent-shape 100 --prior normal
  pyinv export my.package:Decoder -o vae.bundle --latent-shape 64 --prior normal \\
      --value-range 0 1 --loss mse --loss bce
  pyinv export generator.pt -o faces.bundle --latent-shape 100 --prior uniform \\
      --runtime onnx --runtime torchscript
  pyinv export my_models.py:make_decoder -o vae.bundle --latent-shape 4,8,8 --prior normal \\
      --output-item sample
  pyinv export decoder.onnx -o vae.bundle --latent-shape 64 --prior normal
  pyinv export generator.pt -o small.bundle --latent-shape 100 --prior normal \\
      --observe my_models.py:make_blur
  pyinv export my_models.py:make_progan -o tail.bundle --latent-shape 128 --prior normal \\
      --tail-after layer4
  pyinv export my_models.py:make_biggan -o biggan.bundle --latent-shape 128 --prior normal \\
      --input class_label=one_hot:1000 --input truncation=0.4
"""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "export",
        parents=[shared],
        help="turn a PyTorch or ONNX generator into a bundle (needs torch)",
        description=(
            "Turn a PyTorch or ONNX generator into a bundle, and check what the bundle computes.\n"
            f"Needs PyTorch: {install_command('export')}"
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "generator",
        metavar="GENERATOR",
        help="package.module:factory or file.py:factory, where the factory takes no arguments and "
        "returns the torch.nn.Module with its weights; or a TorchScript file from torch.jit.save; "
        "or an ONNX file, named .onnx",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="folder for the bundle, to be created"
    )
    parser.add_argument(
        "--latent-shape",
        metavar="N[,N...]",
        required=True,
        type=parse_shape,
        help="shape of one latent, such as 100 or 100,1,1",
    )
    parser.add_argument(
        "--prior",
        metavar="KIND[:A,B]",
        type=parse_prior,
        help="what the latents of the generator's training were drawn from: normal[:mean,std] "
        "[mean 0, std 1] or uniform[:low,high] [-1 to 1]; required, except with --residuals",
    )
    parser.add_argument(
        "--loss",
        metavar="NAME",
        action="append",
        help="mse, l1, bce, whitened or perceptual; repeat for several [mse, and whitened if the "
        "generator ends in a tanh or sigmoid]",
    )
    parser.add_argument(
        "--features",
        metavar="NETWORK",
        help="feature network for --loss perceptual, which takes the generator's images: a "
        "TorchScript or ONNX file or a factory, as for GENERATOR",
    )
    parser.add_argument(
        "--feature-layers",
        metavar="NAME[,NAME...]",
        help="submodules of a factory's network whose outputs are compared [the network's own]",
    )
    parser.add_argument(
        "--normal-equations",
        action=argparse.BooleanOptionalAction,
        help="export the normal equations of mse and whitened, which Levenberg-Marquardt needs "
        "[if possible: at most 512 latent components, and not --batch-norm batch]",
    )
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        action="append",
        choices=RUNTIMES,
        help=f"{' or '.join(RUNTIMES)}; repeat for both, the preferred one first [onnx]",
    )
    parser.add_argument(
        "--value-range",
        metavar=("LOW", "HIGH"),
        nargs=2,
        type=float,
        help="range of the images that the generator was trained on, such as -1 1 or 0 1 [-1 1 for "
        "a generator that ends in a tanh, 0 1 for one that ends in a sigmoid]",
    )
    parser.add_argument(
        "--batch-norm",
        choices=("eval", "batch"),
        default="eval",
        help="use running statistics, or those of each batch [%(default)s]",
    )
    parser.add_argument(
        "--input",
        metavar="NAME=WHAT",
        action="append",
        type=parse_input,
        help="what another argument of forward is: label:CLASSES, one_hot:CLASSES or "
        "condition:N[,N...][:LOW,HIGH], given for each target when inverting; or its value, such "
        "as 0.7, True, None or a text; repeat for several",
    )
    parser.add_argument(
        "--condition-shape",
        metavar="N[,N...]",
        type=parse_shape,
        help="for a generator that takes (latent, condition)",
    )
    parser.add_argument(
        "--noise",
        choices=("freeze", "latent"),
        help="for a generator that draws noise: fix it, or make it part of the latent",
    )
    parser.add_argument(
        "--output-item",
        metavar="KEY",
        type=parse_output_item,
        help="for a generator that returns several tensors: the key, attribute or index of the one "
        "to export",
    )
    parser.add_argument(
        "--encoder",
        metavar="ENCODER",
        help="an encoder, images -> latents, given like GENERATOR; adds the function encode",
    )
    parser.add_argument(
        "--observe",
        metavar="OPERATOR",
        help="a fixed operator A, if targets are observations A(x) of images x: a blur, "
        "downsampling, a measurement matrix; given like GENERATOR",
    )
    parser.add_argument(
        "--weights",
        action="store_true",
        help="let targets have weights per pixel, such as masks: `pyinv invert --weights`",
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--tail-after",
        metavar="NAME",
        help="export only the part after this submodule, whose activation becomes the latent; "
        "--latent-shape and --prior describe the whole generator",
    )
    parts.add_argument(
        "--residuals",
        metavar="NAME,NAME[,NAME...]",
        help="export a generator whose latents are residuals, added to the activations of all of "
        "these submodules but the last, with the latent as its condition",
    )
    parser.add_argument("--name", help="name of the generator [its class]")
    add_overwrite(parser, "replace an existing bundle")
    add_strict(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise DependencyError(f"exporting needs PyTorch: {install_command('export')}") from None
    if arguments.prior is None and not arguments.residuals:
        raise InputError(
            "--prior is required, what the latents of the generator's training were drawn from: "
            "give --prior normal or --prior uniform"
        )
    from pyinv.export import export, load_generator, split

    given = (arguments.generator, arguments.encoder, arguments.observe, arguments.features)
    files = [part for text in given if text for part in (text, text.rpartition(":")[0]) if part]
    refuse_inputs(Path(arguments.output), files, within=True)
    generator = load_generator(arguments.generator)
    encoder = None if arguments.encoder is None else load_generator(arguments.encoder)
    observe = None
    if arguments.observe is not None:
        observe = load_generator(arguments.observe, what="operator")
    options = {
        "latent_shape": arguments.latent_shape,
        "losses": _losses(arguments),
        "normal_equations": arguments.normal_equations,
        "value_range": arguments.value_range,
        "output": arguments.output_item,
        "encoder": encoder,
        "observe": observe,
        "runtimes": tuple(arguments.runtime or ("onnx",)),
        "name": arguments.name,
        "overwrite": arguments.overwrite,
        "strict": arguments.strict,
    }
    part = arguments.tail_after or arguments.residuals
    inputs = _inputs(arguments.input)
    conditional = inputs or arguments.condition_shape
    if part and (conditional or arguments.noise or arguments.batch_norm == "batch"):
        raise InputError(
            "--tail-after and --residuals take a generator of the latent alone, in eval mode: "
            "leave out --input, --condition-shape, --noise and --batch-norm"
        )
    if arguments.residuals and arguments.weights:
        raise InputError("--residuals has no weights of pixels: leave out --weights")
    layers = split(generator, part.split(",")) if part else None
    console.message("tracing, writing and checking; this takes a moment")
    if layers is None:
        export(
            generator,
            arguments.output,
            prior=arguments.prior,
            batch_norm=arguments.batch_norm,
            inputs=inputs,
            condition_shape=arguments.condition_shape,
            noise=arguments.noise,
            weights=arguments.weights,
            **options,
        )
    elif arguments.tail_after:
        layers.export_tail(
            arguments.output, prior=arguments.prior, weights=arguments.weights, **options
        )
    else:
        layers.export_residual(arguments.output, **options)
    bundle = Bundle.open(arguments.output)
    manifest = bundle.manifest
    solved = [loss for loss in manifest.losses if manifest.has_normal_equations(loss)]
    console.message(
        f"wrote {bundle.path}: latent {list(manifest.latent_shape)}, "
        f"image {list(manifest.image_shape)}, "
        + (f"observed as {list(manifest.target_shape)}, " if manifest.observes else "")
        + f"losses {', '.join(manifest.losses)}, "
        f"normal equations of {', '.join(solved) or 'none'}, for {' and '.join(manifest.runtimes)}"
    )
    console.result({"path": str(bundle.path), **bundle.manifest.describe()})


def _losses(arguments: argparse.Namespace) -> tuple[Any, ...] | None:
    """Return the losses of --loss, with the feature network of a perceptual loss."""
    from pyinv.export import load_generator, perceptual

    names = arguments.loss or []
    if "perceptual" in names and arguments.features is None:
        raise InputError("--loss perceptual needs a network: give one with --features")
    if "perceptual" not in names and (arguments.features or arguments.feature_layers):
        raise InputError("--features and --feature-layers need --loss perceptual: add it")
    if not names:
        return None
    if arguments.features is None:
        return tuple(names)
    layers = arguments.feature_layers.split(",") if arguments.feature_layers else None
    loss = perceptual(load_generator(arguments.features, what="feature network"), layers)
    return tuple(loss if name == "perceptual" else name for name in names)


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected a shape such as 100 or 100,1,1, got {text!r}")
    return shape


def parse_input(text: str) -> tuple[str, Any]:
    name, equals, what = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(
            f"expected NAME=WHAT such as label=label:10 or psi=0.7, got {text!r}"
        )
    kind, colon, numbers = what.partition(":")
    try:
        if colon and kind in ("label", "one_hot"):
            if not numbers.isdecimal():
                raise ValueError(f"{kind}: takes a number of classes, as in {kind}:10")
            return name, (Label if kind == "label" else OneHot)(int(numbers))
        if colon and kind == "condition":
            return name, _parse_condition(numbers)
    except (ValueError, argparse.ArgumentTypeError) as error:  # RuleErrors are ValueErrors
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None
    if colon and kind.isidentifier():
        raise argparse.ArgumentTypeError(
            f"expected label:, one_hot: or condition:, or a quoted text, got {text!r}"
        )
    try:
        return name, ast.literal_eval(what)
    except (ValueError, SyntaxError):
        return name, what


def _parse_condition(text: str) -> Condition:
    shape, colon, bounds = text.partition(":")
    if not colon:
        return Condition(parse_shape(shape))
    try:
        low, high = map(float, bounds.split(","))
    except ValueError:
        raise ValueError("a range is LOW,HIGH, as in condition:1:0,1") from None
    return Condition(parse_shape(shape), low, high)


def _inputs(given: list[tuple[str, Any]] | None) -> dict[str, Any] | None:
    """Return the inputs of --input by name."""
    inputs: dict[str, Any] = {}
    for name, value in given or ():
        if name in inputs:
            raise InputError(f"--input gives {name!r} twice; give it once")
        inputs[name] = value
    return inputs or None


def parse_output_item(text: str) -> str | int:
    return int(text) if text.removeprefix("-").isdecimal() else text


def parse_prior(text: str) -> Prior:
    kind, _, numbers = text.partition(":")
    try:
        values = [float(part) for part in numbers.split(",") if part]
        if kind not in ("uniform", "normal") or len(values) not in (0, 2):
            raise InputError("expected uniform[:low,high] or normal[:mean,std]")
        return Uniform(*values) if kind == "uniform" else Normal(*values)
    except ValueError as error:  # InputError and RuleError are ValueErrors
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None
