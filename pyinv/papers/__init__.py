"""Paper reproductions: each module reproduces one paper's tables and figures on your generators.

``pyinv reproduce`` runs them. A reproduction writes a report: report.html, the figures, and
numbers.json, which records how every number was computed.
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
"""The function that reproduces each paper, by the paper's name on the command line."""
