"""The papers: each module reproduces one paper's tables and figures on any fitting generator.

``pyinv reproduce`` runs them. A reproduction writes a report: report.html, numbers.json with every
number's origin, and its pictures.
"""

from collections.abc import Callable
from pathlib import Path

from pyinv.papers import bau, creswell, egan, lipton, luo
from pyinv.papers.request import Request

__all__ = ["PAPERS", "Request"]

PAPERS: dict[str, Callable[[Request], Path]] = {
    "creswell": creswell.reproduce,
    "lipton": lipton.reproduce,
    "egan": egan.reproduce,
    "luo": luo.reproduce,
    "bau": bau.reproduce,
}
"""Every paper by the name that the command line uses, and what reproduces it."""
