"""The command line ``pyinv``: one module a command, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from pyinv import __version__
from pyinv.cli import demo, encode, export, generate, info, invert, reproduce, train
from pyinv.cli.console import Console
from pyinv.cli.exit_codes import FAILED, INTERRUPTED, USAGE
from pyinv.errors import PyinvError

__all__ = ["main"]

_DESCRIPTION = """\
Recover the latents behind images, for any generator.

A generator written in PyTorch is exported once into a bundle (a folder). From then
on, pyinv inverts images against that bundle, with no PyTorch installed.
"""

_EPILOG = """\
first steps:
  pyinv demo                                          see it work, on a bundle that comes along
  pyinv export my_models.py:make_generator -o faces.bundle --latent-shape 100
  pyinv info faces.bundle
  pyinv generate faces.bundle -n 16 -o samples.png
  pyinv invert faces.bundle photos/ -o latents.npz --save-images reconstructions
with an encoder, which finds latents in one pass, or where to begin:
  pyinv train encoder faces.bundle -o faces           ends with faces/generator.bundle
  pyinv encode faces/generator.bundle photos/ -o latents.npz
  pyinv invert faces/generator.bundle photos/ -o latents.npz --init encoder
without a generator of your own:
  pyinv train gan --data mnist/ -o digits             ends with digits/generator.bundle
what the published methods do on a generator:
  pyinv reproduce lipton --generator faces.bundle -o lipton

exit codes:
  0    done
  1    something given or found is wrong, or failed; one line on standard error says what. `invert`
       writes what was done before a runtime failed
  2    the command line is wrong
  3    done, but the loss of some targets became NaN or infinite
  130  interrupted; what was found so far is written, and `train` and `reproduce` go on from there
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(USAGE)


def _build_parser() -> _Parser:
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on standard output"
    )
    group.add_argument(
        "--quiet", "-q", action="store_true", help="no progress and no messages, errors excepted"
    )
    group.add_argument(
        "--traceback", action="store_true", help="on an error, print Python's traceback as well"
    )
    parser = _Parser(
        prog="pyinv",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    for module in (demo, export, info, generate, encode, invert, train, reproduce):
        module.add_parser(commands, shared)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyinv`` with these arguments, by default the process's; return its exit code."""
    parser = _build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse leaves this way, after --help too
        return int(end.code or 0)
    if arguments.version:
        print(__version__)
        return 0
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    console = Console(json=arguments.json, quiet=arguments.quiet)
    try:
        code = arguments.run(arguments, console)
        sys.stdout.flush()
        return int(code)
    except BrokenPipeError:
        # The reader of our output left. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        console.error("interrupted; nothing was written")
        return INTERRUPTED
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        console.error(_one_line(error))
        return FAILED


def _one_line(error: Exception) -> str:
    """Say what went wrong in one line, whatever it was."""
    text = " ".join(str(error).split())
    if isinstance(error, PyinvError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller --batch-size, or fewer images at a time"
    return f"{type(error).__name__}: {text} (an error within pyinv; --traceback shows where)"
