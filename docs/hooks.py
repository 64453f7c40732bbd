"""What MkDocs does beside rendering pages: lays out the package for the API reference, adds MathJax
to the site, and makes sure that all maths is in the form that the site renders.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "build" / "docs-package" / "pyinv"
MATHJAX = "assets/tex-svg.js"

log = logging.getLogger("mkdocs.hooks")


def on_startup(**_: Any) -> None:
    """Link the modules to where they are once installed: ``export/`` is ``pyinv.export``.

    Before the plugins read their settings: mkdocstrings ignores a search path that is not there.
    """
    shutil.rmtree(PACKAGE, ignore_errors=True)
    PACKAGE.mkdir(parents=True)
    for path in (ROOT / "pyinv").iterdir():
        if path.suffix in ("", ".py", ".pyi") and path.name != "__pycache__":
            os.symlink(path, PACKAGE / path.name)
    os.symlink(ROOT / "export", PACKAGE / "export")


def on_files(files: Files, config: Any) -> Files:
    """Add MathJax, one file, from the Python package that carries it."""
    spec = find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise SystemExit("MathJax is missing; `make docs` installs it")
    source = Path(spec.origin).parent / "static" / "mathjax" / "es5" / "tex-svg.js"
    files.append(File.generated(config, MATHJAX, abs_src_path=str(source)))
    return files


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Warn of maths in Sphinx's form, which this site shows as it is written."""
    for found in re.findall(r"(?:\.\. math::|:math:).{0,40}", html):
        log.warning(f"{page.file.src_path}: write maths as $...$ or $$...$$, found {found!r}")
    return html
