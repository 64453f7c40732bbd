"""``pyinv serve``: a web service that inverts images."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.exit_codes import DONE, INTERRUPTED
from pyinv.cli.options import add_machine_options, machine_options, real, whole

__all__ = ["add_parser", "run"]

_EPILOG = """\
It ends on SIGTERM or Ctrl-C once the requests under way have been answered. It has neither
passwords nor TLS, and therefore listens to this machine only, unless --host says otherwise.

examples:
  pyinv serve faces.bundle
  curl --data-binary @photo.png http://127.0.0.1:8000/invert
  pyinv serve faces.bundle --recipe default --recipe precise --batch-size 128 --timeout 10
"""


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "serve",
        parents=[shared],
        help="invert images over HTTP (needs pyinv[serve])",
        description="Invert images over HTTP. All clients share the lanes of one engine. The page "
        "/docs describes the service.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or address")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all [%(default)s]"
    )
    whole(parser, "--port", "port to listen on; 0 for a free one [%(default)s]", default=8000)
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="NAME",
        help="a recipe that requests may ask for; repeat for several, the default first [default]",
    )
    whole(parser, "--seed", "the seed of requests that give none [%(default)s]", default=0)
    whole(parser, "--workers", "threads that decode images [%(default)s]", default=2)
    limits = parser.add_argument_group("limits")
    real(limits, "--timeout", "seconds that a request may take [60]")
    whole(limits, "--max-body", "bytes of a request's body [16777216]")
    whole(limits, "--max-pixels", "pixels of an image file [16777216]")
    whole(limits, "--max-images", "images per request [64]")
    whole(limits, "--queue", "images that may wait for a lane [256]")
    whole(limits, "--streams", "combinations of recipe, loss, effort and seed at once [4]")
    whole(limits, "--max-held", "bytes of all bodies at once [268435456]")
    add_machine_options(parser, batch_size=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the command."""
    from pyinv.inverter import Inverter
    from pyinv.serving import Limits, create_app
    from pyinv.serving.server import Server, listen

    names = ("timeout", "max_body", "max_pixels", "max_images", "queue", "streams", "max_held")
    given = {name: getattr(arguments, name) for name in names}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    app = create_app(
        Inverter(arguments.bundle, **machine_options(arguments)),
        recipes=arguments.recipe or ("default",),
        seed=arguments.seed,
        limits=limits,
        workers=arguments.workers,
    )
    bound = listen(arguments.host, arguments.port)
    host, port = bound.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    server = Server(app)
    console.message(f"serving {arguments.bundle} on {url}, described at {url}/docs")
    console.result({"bundle": arguments.bundle, "url": url})
    server.run(sockets=[bound])
    if app.state.service.failure is not None:
        raise app.state.service.failure
    console.message("stopped")
    return INTERRUPTED if server.forced else DONE
