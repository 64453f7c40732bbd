"""Bundles elsewhere: opened by their address, from a cache of verified copies."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pyinv.bundle import MANIFEST_NAME, Bundle, parse_manifest
from pyinv.caution import warn
from pyinv.errors import BundleError, DependencyError, InputError, OutputError, one_line
from pyinv.extras import install_command

__all__ = [
    "Files",
    "Unreachable",
    "UrlFiles",
    "cache_folder",
    "is_local",
    "missing_packages",
    "open_address",
]

HUB = "hf://"


class Unreachable(BundleError):
    """A bundle's address cannot be reached at the moment; a copy in the cache may do.

    Args:
        address: the address.
        reason: why.
        wanted: whether that is what the user asked for, by working offline.
    """

    def __init__(self, address: str, reason: str, *, wanted: bool = False) -> None:
        super().__init__(f"{address}: cannot be reached ({reason})")
        self.wanted = wanted


class Files(Protocol):
    """The files at an address."""

    @property
    def identity(self) -> str:
        """What a cached copy is found by: the address and all that its content depends on."""

    def fetch(self, name: str, folder: Path) -> None:
        """Write a file into ``folder``, under its name.

        Raises:
            FileNotFoundError: there is no such file.
            Unreachable: the address cannot be reached.
            PyinvError: the address is wrong, or denies access.
        """


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of downloaded bundles.

    It is the given one, $PYINV_CACHE, $XDG_CACHE_HOME/pyinv or ~/.cache/pyinv.
    """
    if given is not None:
        return Path(given)
    if own := os.environ.get("PYINV_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyinv"


def open_address(
    address: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    verify: bool = True,
) -> Bundle:
    """Open the bundle at an address; the arguments are those of ``Bundle.from_pretrained``.

    The manifest is read each time. The other files are downloaded only if the cache has no bundle
    of that digest. They become visible in the cache at once, when all of them are verified.

    Raises:
        BundleError: there is no bundle at the address, it is damaged, or it cannot be reached and
            was not downloaded before.
        DependencyError: a package is missing.
        InputError: a malformed address or an option that does not apply to it.
        OutputError: the cache cannot be written to.
    """
    files: Files
    if address.startswith(HUB):
        from pyinv.hub import HubFiles

        files = HubFiles(address, revision=revision, token=token)
    else:
        if revision is not None or token is not None:
            raise InputError(
                f"{address}: revision and token are for {HUB}USER/NAME; leave them out"
            )
        files = UrlFiles(address)
    try:
        from filelock import FileLock
    except ImportError:
        raise missing_packages(address) from None
    cache = cache_folder(cache_dir).absolute()
    place = cache / "addresses" / hashlib.sha256(files.identity.encode()).hexdigest()
    try:
        place.mkdir(parents=True, exist_ok=True)
        (cache / "bundles").mkdir(exist_ok=True)
        # Other processes that open this address wait, and then find it in the cache.
        with FileLock(place / "lock"):
            for left in place.glob("draft-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(
                prefix="draft-", dir=place, ignore_cleanup_errors=True
            ) as draft:
                return _open(address, files, cache, place / "digest", Path(draft), verify=verify)
    except OSError as error:
        raise OutputError(
            f"{cache}: cannot hold downloaded bundles ({one_line(error)}); make room there, or "
            "choose another folder with cache_dir=... or PYINV_CACHE"
        ) from None


def _open(
    address: str, files: Files, cache: Path, record: Path, draft: Path, *, verify: bool
) -> Bundle:
    folder = draft / "bundle"  # unlike a temporary folder, with the permissions of the umask
    folder.mkdir()
    try:
        _fetch(address, files, MANIFEST_NAME, folder)
    except Unreachable as error:
        known = record.read_text() if record.is_file() else ""
        bundle = _cached(cache, known, verify=verify)
        if bundle is None:
            raise BundleError(f"{error}, and {cache} has no copy of it") from None
        if not error.wanted:
            warn(f"{error}; opening the copy downloaded before, {known}")
        return bundle
    manifest, digest = parse_manifest((folder / MANIFEST_NAME).read_bytes(), address)
    bundle = _cached(cache, digest, verify=verify)
    if bundle is None:
        for name in manifest.files:
            _fetch(address, files, name, folder)
        try:
            Bundle.open(folder)
        except BundleError as error:
            raise BundleError(str(error).replace(str(folder), address)) from None
        place = _place(cache, digest)
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # else another address has just brought the same bundle
                raise
        bundle = Bundle.open(place, verify=False)
    remembered = draft / record.name
    remembered.write_text(digest)
    remembered.replace(record)
    return bundle


def _fetch(address: str, files: Files, name: str, folder: Path) -> None:
    try:
        files.fetch(name, folder)
    except FileNotFoundError:
        raise BundleError(
            f"{address}: no pyinv bundle there, it has no {MANIFEST_NAME}; give the address of the "
            "folder that export wrote"
            if name == MANIFEST_NAME
            else f"{address}: {name} is missing from the bundle; upload it again"
        ) from None


def _place(cache: Path, digest: str) -> Path:
    return cache / "bundles" / digest.removeprefix("sha256:")


def _cached(cache: Path, digest: str, *, verify: bool) -> Bundle | None:
    """Return the bundle of this digest in the cache, if there is one; a damaged one is removed."""
    place = _place(cache, digest)
    if not digest or not place.is_dir():
        return None
    with suppress(BundleError):
        bundle = Bundle.open(place, verify=verify)
        if bundle.digest == digest:
            return bundle
    shutil.rmtree(place)
    return None


class UrlFiles:
    """The files at a URL of any protocol that fsspec knows."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise missing_packages(url) from None
        self.identity = self._url = url.rstrip("/")
        try:
            self._system, root = url_to_fs(self.identity)
        except ImportError as error:  # names the package for this protocol
            raise DependencyError(f"{url}: {one_line(error)}") from None
        except ValueError as error:
            raise InputError(f"{url}: {one_line(error)}") from None
        self._root = root.rstrip("/")

    def fetch(self, name: str, folder: Path) -> None:
        """Write a file into ``folder``; the errors are those of ``Files.fetch``."""
        try:
            self._system.get_file(f"{self._root}/{name}", str(folder / name))
        except FileNotFoundError:
            raise
        except Exception as error:  # each protocol's package has its own
            if is_local(error):
                raise
            if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403):
                raise BundleError(f"{self._url}: access denied ({one_line(error)})") from None
            raise Unreachable(self._url, one_line(error)) from None


def is_local(error: Exception) -> bool:
    """Whether a download failed because of the disk here."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def missing_packages(address: str) -> DependencyError:
    """Return the error about the packages that addresses need."""
    return DependencyError(
        f"{address}: bundles elsewhere need more packages: {install_command('hub')}"
    )
