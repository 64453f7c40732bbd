"""``pyinv merge``: join the shards of a job."""

from __future__ import annotations

import argparse
from typing import Any

from pyinv.cli.console import Console
from pyinv.cli.exit_codes import DONE
from pyinv.cli.options import add_overwrite
from pyinv.errors import InputError
from pyinv.jobs import merge_jobs

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser = commands.add_parser(
        "merge",
        parents=[shared],
        help="join the shards of a job into one Parquet file",
        description="Join the shards of a job into one Parquet file, in the order of its source. "
        "Refused while shards are missing.",
    )
    parser.add_argument(
        "folders",
        metavar="JOB",
        nargs="+",
        help="the job's folder; or several, of parts that were run with --shard",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE.parquet", required=True, help="file to write"
    )
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the command; return its exit code."""
    if not arguments.output.endswith(".parquet"):
        raise InputError(f"{arguments.output}: expected a file name that ends in .parquet")
    rows = merge_jobs(arguments.folders, arguments.output, overwrite=arguments.overwrite)
    console.message(f"wrote {rows:,} rows to {arguments.output}")
    console.result({"rows": rows, "output": arguments.output})
    return DONE
