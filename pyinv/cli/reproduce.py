"""``pyinv reproduce``: reproduce a paper's tables and figures, next to the published ones."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.options import add_machine_options, add_size_limits, machine_options, real, whole

__all__ = ["add_parser", "run"]

ENCODED = ("luo", "bau")  # the papers that have encoders

_EPILOG = """\
papers:
  creswell  Creswell & Bharath 2016: binary cross-entropy; clipping, or a penalty on the latents'
            mean and spread. Inverts test images. Any prior; the bundles need the loss bce.
            Here 100 images and 1,000 steps
  lipton    Lipton & Tripathi 2017: gradient descent with no, standard and stochastic clipping.
            Inverts generated images. Uniform priors. Paper: 1,000 images and 80,000 to 100,000
            steps; here 100 and 1,000
  egan      Egan et al. 2018: 18 criteria for resampling components. Inverts generated images.
            Normal priors. Paper: 100 images and 20,000 steps; here 100 and 1,000
  luo       Luo et al. 2017: encoders by three methods (AEGAN, direct training, BiGAN), and search
            by latents, hashes and colours. Inverts generated images, searches the data. Any prior.
            Paper: 20,000 images searched; here the same, if the data has as many
  bau       Bau et al. 2019: six methods, of which two invert layer by layer. Inverts generated
            images and test images. Any prior; layers need a training folder. Paper: 100 images
            and 3,000 steps; here 100 and 1,000

Use --targets and --max-steps for the papers' own numbers. DIR/report.html is the report, and
DIR/numbers.json has all its numbers. The same command resumes an interrupted report. Finished runs
are cached in DIR/runs, as are the finished targets of an interrupted run unless they share a batch.
Encoders are trained in DIR/encoders and resume from their checkpoints.

examples:
  pyinv reproduce lipton --generator faces.bundle -o lipton
  pyinv reproduce creswell --data mnist/ --data omniglot/ -o creswell
  pyinv reproduce egan --generator trained/ --targets 100 --max-steps 20000 -o egan
  pyinv reproduce luo --generator faces.bundle -o luo
  pyinv reproduce luo --generator trained/ --data mnist/ --encoder aegan/ --targets 1000 -o luo
  pyinv reproduce bau --generator progan/ --data cifar10.zip -o bau
"""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    from pyinv.datasets import DATASET_FORMATS

    parser = commands.add_parser(
        "reproduce",
        parents=[shared],
        help="reproduce a paper's tables and figures as a report",
        description="Reproduce a paper's tables and figures, and write them as a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paper", metavar="PAPER", help="creswell, lipton, egan, luo or bau, see below"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="folder for the report and the runs"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        default=[],
        help=f"a dataset; can be given several times: {DATASET_FORMATS}",
    )
    parser.add_argument(
        "--generator",
        metavar="PATH",
        action="append",
        default=[],
        help="a bundle, or a folder that `pyinv train` wrote; can be given several times "
        "[trained on the data, into DIR/generators]",
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="training configuration, if a generator is trained [the paper's]",
    )
    parser.add_argument(
        "--encoder",
        metavar="PATH",
        action="append",
        default=[],
        help="luo, bau: a bundle with an encoder, or a folder that `pyinv train encoder` wrote; "
        "can be given several times [trained, into DIR/encoders]",
    )
    whole(
        parser,
        "--encoder-iterations",
        "luo, bau: training iterations of an encoder [the configuration's]",
    )
    whole(parser, "--targets", "images to invert [see below]")
    whole(parser, "--max-steps", "steps of a run [see below]")
    real(parser, "--learning-rate", "learning rate of the paper's method [the paper's]")
    whole(parser, "--seed", "random seed [0]")
    add_machine_options(parser, batch_size=True)
    add_size_limits(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    from pyinv.errors import InputError
    from pyinv.papers import PAPERS, Request
    from pyinv.papers.report import check_report_folder

    if arguments.paper not in PAPERS:
        raise InputError(f"unknown paper {arguments.paper!r}; there are {', '.join(PAPERS)}")
    if (arguments.encoder or arguments.encoder_iterations) and arguments.paper not in ENCODED:
        raise InputError(
            f"{arguments.paper} has no encoders; leave --encoder and --encoder-iterations out, "
            f"which are for {' and '.join(ENCODED)}"
        )
    options = {
        "configuration": arguments.config,
        "targets": arguments.targets,
        "max_steps": arguments.max_steps,
        "learning_rate": arguments.learning_rate,
        "encoder_iterations": arguments.encoder_iterations,
        "seed": arguments.seed,
    }
    request = Request(
        arguments.output,
        data=arguments.data,
        generators=arguments.generator,
        encoders=arguments.encoder,
        machine=machine_options(arguments),
        say=console.message,
        progress=console.shows_progress,
        **{name: value for name, value in options.items() if value is not None},
    )
    check_report_folder(request.folder, (*arguments.data, *arguments.generator, *arguments.encoder))
    try:
        report = PAPERS[arguments.paper](request)
    except KeyboardInterrupt as interrupt:
        reached = str(interrupt) or "finished runs are saved; the same command continues"
        raise KeyboardInterrupt(reached) from None
    console.message(f"wrote {report}")
    if console.json:
        numbers = report.with_name("numbers.json")
        console.result(
            {
                "report": str(report),
                "numbers": str(numbers),
                "settings": json.loads(numbers.read_text(encoding="utf-8"))["settings"],
            }
        )
