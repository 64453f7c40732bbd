"""The packages that pyinv's extras add, and the command that installs them."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from functools import cache

__all__ = ["install_command"]


@cache
def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra, such as "export".

    It names the packages and not pyinv, so that it needs neither the place that pyinv was installed
    from nor a release of it.
    """
    packages = _packages(extra)
    return "pip install " + " ".join(shlex.quote(name) for name in packages or [f"pyinv[{extra}]"])


def _packages(extra: str) -> list[str]:
    """Return the requirements of an extra, and of the extras that it includes."""
    try:
        required = importlib.metadata.requires("pyinv") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found: dict[str, None] = {}
    for line in required:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if not re.search(rf"""extra == ['"]{extra}['"]""", marker):
            continue
        included = re.match(r"pyinv\[(.+)\]", requirement)
        for other in included[1].split(",") if included else ():
            found |= dict.fromkeys(_packages(other.strip()))
        if not included:
            found[requirement] = None
    return list(found)
