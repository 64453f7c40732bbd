"""How many latents come back, how exactly, and at what cost? All that is claimed about recovery.

    python benchmarks/recovery.py --json      # everything, one JSON object; hours on two cores
    python benchmarks/recovery.py             # the same as tables
    python benchmarks/recovery.py --generator faces --recipe precise --targets 50 --section recovery

benchmarks/README.md says what is measured and how. What was measured is kept in build/recovery, so
that an interrupted benchmark goes on where it stopped. Needs `pip install "pyinv[export]"`.
"""

from recovery.command import main

if __name__ == "__main__":
    raise SystemExit(main())
