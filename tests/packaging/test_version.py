"""The version is the same wherever it is written by hand."""

from __future__ import annotations

import re

import pyinv
from support.paths import REPOSITORY


def test_the_citation_is_of_this_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == pyinv.__version__
