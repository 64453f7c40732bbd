"""Entry point of ``python -m pyinv``."""

from __future__ import annotations

import sys

from pyinv.cli import main

sys.exit(main())
