"""The documentation's examples."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from support.paths import REPOSITORY


def run_examples(page: str, names: dict[str, Any]) -> None:
    """Run a page's Python blocks in their order; ``names`` is what they share."""
    path: Path = REPOSITORY / "docs" / page
    text = path.read_text("utf-8")
    for block in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.M | re.S):
        line = text.count("\n", 0, block.start(2))
        code = "\n" * line + textwrap.dedent(block[2])  # errors name the line of the page
        exec(compile(code, str(path), "exec"), names)
