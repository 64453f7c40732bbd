"""The command line ``pyinv``: one module per command, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from pyinv import __version__
from pyinv.cli import (
    demo,
    encode,
    export,
    generate,
    info,
    invert,
    merge,
    push,
    reproduce,
    serve,
    train,
)
from pyinv.cli.console import Console
from pyinv.cli.exit_codes import (
    DONE,
    FAILED,
    INTERRUPTED,
    NON_FINITE,
    TIMED_OUT,
    UNFINISHED,
    USAGE,
)
from pyinv.errors import CancelledError, PyinvError, printable
from pyinv.interrupts import came, ends_like_ctrl_c, exit_code
from pyinv.size_limits import set_size_limits

__all__ = ["main"]

# In the order of the help.
_COMMANDS = (
    demo,
    export,
    info,
    generate,
    encode,
    invert,
    merge,
    serve,
    train,
    push,
    reproduce,
)

_DESCRIPTION = """\
Recover the latents of images, for any generator.

Export a PyTorch generator once to a bundle (a folder). pyinv then inverts images with
that bundle, without PyTorch.
"""

_EPILOG = f"""\
first steps:
  pyinv demo                                          a demo with the bundle included in pyinv
  pyinv export my_models.py:make_generator -o faces.bundle --latent-shape 100 --prior normal
  pyinv info faces.bundle
  pyinv generate faces.bundle -n 16 -o samples.png
  pyinv invert faces.bundle photos/ -o latents.npz --save-images reconstructions
  pyinv serve faces.bundle                            inverts images over HTTP
with an encoder, for latents in one pass or as a starting point:
  pyinv train encoder faces.bundle -o faces           writes faces/generator.bundle
  pyinv encode faces/generator.bundle photos/ -o latents.npz
  pyinv invert faces/generator.bundle photos/ -o latents.npz --init encoder
without a generator of your own:
  pyinv train gan --data mnist/ -o digits             writes digits/generator.bundle
published methods on a generator:
  pyinv reproduce lipton --generator faces.bundle -o lipton

exit codes:
  {DONE:<3}  success
  {FAILED:<3}  error; one line on standard error says what is wrong. If a runtime fails, \
`invert` writes the
       results so far
  {USAGE:<3}  invalid command line
  {NON_FINITE:<3}  success, but some targets have no usable latent: their loss became NaN or \
infinite, or a
       job could not read them
  {UNFINISHED:<3}  a job was ended by SIGTERM; the same command goes on with it
  {TIMED_OUT:<3}  ended by --timeout; the results so far are written
  {INTERRUPTED:<3}  interrupted; the results so far are written, and jobs, `train` and `reproduce` \
can be
       resumed. After SIGTERM {128 + 15}, after SIGHUP {128 + 1}
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {printable(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(USAGE)


def _build_parser() -> _Parser:
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on standard output"
    )
    group.add_argument(
        "--quiet", "-q", action="store_true", help="print no progress and no messages except errors"
    )
    group.add_argument(
        "--traceback", action="store_true", help="also print Python's traceback on errors"
    )
    parser = _Parser(
        prog="pyinv",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    for module in _COMMANDS:
        module.add_parser(commands, shared)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyinv`` with these arguments, by default ``sys.argv``; return the exit code."""
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # it was closed before the program started
                setattr(sys, name, stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
                stack.callback(setattr, sys, name, None)
        try:
            code = _main(argv)
            sys.stdout.flush()
            return code
        except OSError as error:  # an output cannot be written; nothing else gets here
            if not isinstance(error, BrokenPipeError):
                with contextlib.suppress(OSError):
                    print(f"pyinv: error: standard output: {error.strerror}", file=sys.stderr)
            for stream in (sys.stdout, sys.stderr):  # Python would report it again on exit
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return FAILED


def _main(argv: Sequence[str] | None) -> int:
    parser = _build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse exits this way, also after --help
        return int(end.code or 0)
    if arguments.version:
        print(__version__)
        return DONE
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    console = Console(json=arguments.json, quiet=arguments.quiet)
    if not console.shows_bar:  # nor may huggingface_hub, which reads this when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with ends_like_ctrl_c():
        try:
            return _run(arguments, console)
        except KeyboardInterrupt:  # another one, while the first was reported
            return exit_code()


def _run(arguments: argparse.Namespace, console: Console) -> int:
    try:
        with console.shows_warnings():
            set_size_limits(
                max_pixels=getattr(arguments, "max_pixels", None),
                max_bytes=getattr(arguments, "max_bytes", None),
            )
            code: int | None = arguments.run(arguments, console)
        sys.stdout.flush()
        if code == INTERRUPTED or (not code and came()):
            return exit_code()
        return DONE if code is None else code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as interrupt:
        console.error("; ".join(filter(None, ("interrupted", str(interrupt)))))
        return exit_code()
    except CancelledError:
        console.error("--timeout came before there was a result; nothing was written")
        return TIMED_OUT
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        console.error(_one_line(error))
        return FAILED


def _one_line(error: Exception) -> str:
    """Return any error as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, PyinvError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller --batch-size, or fewer images at a time"
    return f"{type(error).__name__}: {text} (an error within pyinv; --traceback shows where)"
