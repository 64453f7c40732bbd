"""A job's folder: its settings, its locks, and which of its shards are finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pyinv.atomic_files import write_whole
from pyinv.drafts import remove_left_drafts
from pyinv.errors import InputError, OutputError, one_line
from pyinv.jobs.shards import partial_name, shard_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["JobFile", "Part", "locked", "part_of"]

JOB_FILE = "job.json"
FORMAT_VERSION = 1
_LOCK = re.compile(r"\.lock-\d+-of-(\d+)")


@dataclass(frozen=True)
class JobFile:
    """What ``job.json`` holds.

    Args:
        settings: what the results depend on; a job only goes on with the same ones.
        made_with: the versions, device and sources that the job was started with.
    """

    settings: dict[str, Any]
    made_with: dict[str, Any]

    @property
    def digest(self) -> str:
        """The hash of the settings. One that is null is like one that is missing."""
        given = {name: value for name, value in _flat(self.settings) if value is not None}
        text = json.dumps(given, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def count(self) -> int:
        """The number of targets."""
        return int(self.settings["source"]["count"])

    @property
    def shard_size(self) -> int:
        """The number of targets of a shard."""
        return int(self.settings["shard_size"])

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        """Return a shard's rows."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    def path(self, folder: Path, shard: int) -> Path:
        """Return the path of a finished shard."""
        return folder / shard_name(shard, self.shards)

    def partial_path(self, folder: Path, shard: int) -> Path:
        """Return the path of what is known of an unfinished shard."""
        return folder / partial_name(shard, self.shards)

    @classmethod
    def read(cls, folder: Path) -> JobFile:
        """Read a job's file.

        Raises:
            InputError: the folder has none, or a damaged one, or one of a later version.
        """
        path = folder / JOB_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version, job = found["format_version"], cls(found["settings"], found["made_with"])
            if version <= FORMAT_VERSION and job.count >= 1 and job.shard_size >= 1:
                return job
        except FileNotFoundError:
            raise InputError(f"{folder}: not a job's folder: it has no {JOB_FILE}") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: damaged; give another folder") from None
        raise InputError(f"{path}: written by a later version of pyinv; update pyinv")

    def write(self, folder: Path) -> None:
        """Write the job's file; raise OutputError if that fails."""
        content = {
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "made_with": self.made_with,
        }
        write_whole(folder / JOB_FILE, (json.dumps(content, indent=2) + "\n").encode())

    def check_same(self, folder: Path, other_job: JobFile, name: str = "this run") -> None:
        """Raise InputError if another job is not this one, which ``folder`` holds."""
        mine, other = dict(_flat(self.settings)), dict(_flat(other_job.settings))
        for key in [*mine, *(key for key in other if key not in mine)]:
            was, now = mine.get(key), other.get(key)
            if was != now:
                method = " of the method (recipe, effort and so on)" if "recipe." in key else ""
                raise InputError(
                    f"{folder}: holds a job with {key} {_shown(was)}, and {name} has "
                    f"{_shown(now)}; use the same settings{method}, or another folder"
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


@dataclass(frozen=True)
class Part:
    """Every ``of``-th shard of a job, from shard ``number - 1`` on: what one run works on."""

    number: int = 1
    of: int = 1

    def shards(self, count: int) -> range:
        """Return this part's shards."""
        return range(self.number - 1, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def part_of(given: str | tuple[int, int] | None) -> Part:
    """Return the part that "i/n" or (i, n) names, with i from 1 to n; None: everything."""
    if given is None:
        return Part()
    number, of = 0, 0
    if isinstance(given, str):
        if match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", given):
            number, of = int(match[1]), int(match[2])
    else:
        with contextlib.suppress(TypeError, ValueError):
            number, of = (int(value) for value in given)
    if not 1 <= number <= of:
        raise InputError(f"shard must be i/n with i from 1 to n, such as 1/4 to 4/4, got {given!r}")
    return Part(number, of)


# Locks ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path, part: Part, job: JobFile) -> Iterator[JobFile]:
    """Hold a part of a job's folder, and make or check its ``job.json``.

    The lock is the operating system's, so that it ends with the process, however that ends. Parts
    of one division exclude only themselves; a run with another division is refused.

    Raises:
        OutputError: another run holds the part, or the folder cannot be written to.
        InputError: the folder is a job with other settings.
    """
    with contextlib.ExitStack() as held:
        try:
            with _flock(folder / ".lock", wait=True):
                held.enter_context(_claimed(folder, part))
                if (folder / JOB_FILE).exists():
                    found = JobFile.read(folder)
                    try:
                        found.check_same(folder, job)
                    except InputError as error:
                        if any(folder.glob("*part-*")):
                            raise
                        raise InputError(
                            f"{error}; or remove this one, which has no results yet"
                        ) from None
                    job = found
                else:
                    job.write(folder)
                remove_left_drafts(folder)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({one_line(error)})") from None
        yield job


@contextlib.contextmanager
def _claimed(folder: Path, part: Part) -> Iterator[None]:
    for path in folder.glob(".lock-*-of-*"):
        match = _LOCK.fullmatch(path.name)
        if match and int(match[1]) != part.of:
            with _flock(path):  # refuses if it is held
                pass
    path = folder / f".lock-{part.number}-of-{part.of}"
    with _flock(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def _flock(path: Path, *, wait: bool = False) -> Iterator[IO[str]]:
    with open(path, "a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise OutputError(
                    f"{path.parent}: {holder} is working on this job; wait for it, or stop it"
                ) from None
        yield file
