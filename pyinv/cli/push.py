"""``pyinv push``: upload a bundle to the Hugging Face hub."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.bundle import Bundle
from pyinv.cli.console import Console

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "push",
        parents=[shared],
        help="upload a bundle to the Hugging Face hub",
        description="Upload a bundle to a repository of the Hugging Face hub, in one commit, with "
        "a model card if the repository has no README.md. Log in first with `hf auth login`, or "
        "set HF_TOKEN.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or address")
    parser.add_argument("repository", metavar="USER/NAME", help="created if necessary")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="created if necessary [main]")
    parser.add_argument("--message", metavar="TEXT", help="commit message [names the digest]")
    parser.add_argument("--license", metavar="ID", help="for the model card, such as apache-2.0")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run the command."""
    bundle = Bundle.open(arguments.bundle)
    address = bundle.push_to_hub(
        arguments.repository,
        private=arguments.private or None,
        revision=arguments.revision,
        commit_message=arguments.message,
        license=arguments.license,
    )
    console.message(f"uploaded {bundle.path} to {address}")
    console.result({"bundle": arguments.bundle, "digest": bundle.digest, "address": address})
