"""Measure the recovery of latents: how many, how exactly, and at what cost.

    python benchmarks/recovery.py --json      # everything, one JSON object; hours on two cores
    python benchmarks/recovery.py             # the same as tables
    python benchmarks/recovery.py --generator faces --recipe precise --targets 50 --section recovery

benchmarks/README.md describes the measurements. Results are cached in build/recovery, so that an
interrupted benchmark resumes where it stopped. Needs `pip install '.[export,cpu]'`.
"""

from recovery.command import main

if __name__ == "__main__":
    raise SystemExit(main())
