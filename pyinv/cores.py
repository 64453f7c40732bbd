"""Numbers of threads: the cores available to this process, and the most that are accepted."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MAX_THREADS", "usable_cores"]

MAX_THREADS = 1024  # more than any machine's cores; each costs memory


def usable_cores() -> int:
    """Return the number of physical cores available to this process, at least 1.

    Counts the cores of its affinity mask, with two hardware threads of a core counted once, up to
    its container's CPU quota.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:
        cpus = set(range(os.cpu_count() or 1))
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    # Without that file (not Linux), every hardware thread counts as a core.
    cores = {_read(siblings.format(cpu)) or str(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Return the control group's CPU quota in whole CPUs; a large number without a limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return max(1, round(int(quota) / int(period)))
    return 1 << 20


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
