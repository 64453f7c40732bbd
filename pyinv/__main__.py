"""``python -m pyinv`` is ``pyinv``."""

from __future__ import annotations

import sys

from pyinv.cli import main

sys.exit(main())
