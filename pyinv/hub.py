"""Bundles in repositories of the Hugging Face hub."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from pyinv.bundle import MANIFEST_NAME, Bundle
from pyinv.download import HUB, Unreachable, is_local, missing_packages
from pyinv.errors import BundleError, InputError, OutputError, PyinvError
from pyinv.model_card import model_card

__all__ = ["HubFiles", "is_repository", "push"]

_REPOSITORY = r"[\w.-]+/[\w.-]+"
_ADDRESS = re.compile(rf"{HUB}({_REPOSITORY})(?:@([^/@]+))?((?:/[^/]+)*)/?", re.ASCII)
_CARD_NAME = "README.md"


def is_repository(source: str) -> bool:
    """Whether this is a repository's name, USER/NAME."""
    return re.fullmatch(_REPOSITORY, source, re.ASCII) is not None


class HubFiles:
    """The files of a repository, or of a folder in it, all of one commit.

    Args:
        address: hf://USER/NAME, hf://USER/NAME@REVISION or either with /FOLDER.
        revision: a branch, tag or commit, if the address has none.
        token: as for huggingface_hub: a token, None for the one that is logged in, False for none.
    """

    def __init__(self, address: str, *, revision: str | None, token: str | bool | None) -> None:
        matched = _ADDRESS.fullmatch(address)
        if matched is None:
            raise InputError(
                f"{address}: expected {HUB}USER/NAME, perhaps with @REVISION and /FOLDER after it"
            )
        self._repository, named, self._folder = matched.groups()
        named = None if named is None else unquote(named)
        if None not in (named, revision) and named != revision:
            raise InputError(f"{address}: has another revision than {revision!r}; give one of them")
        self._address = address
        self._revision = named if revision is None else revision
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise missing_packages(address) from None
        self._api = HfApi(token=token, library_name="pyinv")
        place = f"{self._repository}{self._folder}"
        self.identity = f"{self._api.endpoint} {place} {self._revision or ''}"

    @cached_property
    def _commit(self) -> str:
        commit = self._api.model_info(self._repository, revision=self._revision).sha
        assert commit is not None
        return commit

    def fetch(self, name: str, folder: Path) -> None:
        """Write a file into ``folder``; the errors are those of ``Files.fetch``."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            with _one_line_errors(self._address, self._revision):
                path = self._api.hf_hub_download(
                    self._repository,
                    f"{self._folder}/{name}".lstrip("/"),
                    revision=self._commit,
                    local_dir=scratch,
                )
            os.replace(path, folder / name)


def push(
    bundle: Bundle,
    repository: str,
    *,
    private: bool | None,
    revision: str | None,
    commit_message: str | None,
    license: str | None,
    token: str | bool | None,
) -> str:
    """Upload a bundle; the arguments and errors are those of ``Bundle.push_to_hub``."""
    if not is_repository(repository):
        raise InputError(f"expected a repository USER/NAME, got {repository!r}")
    address = f"{HUB}{repository}"
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError:
        raise missing_packages(address) from None
    bundle = Bundle.open(bundle.path)  # nothing damaged since is uploaded
    files = [MANIFEST_NAME, *bundle.manifest.files]
    added = [CommitOperationAdd(name, str(bundle.path / name)) for name in files]
    api = HfApi(token=token, library_name="pyinv")
    with _one_line_errors(address, revision):
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise OutputError(
                f"{address}: exists and is public; make it private on the hub first, or choose "
                "another name"
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        if _CARD_NAME not in files and not api.file_exists(
            repository, _CARD_NAME, revision=revision
        ):
            card = model_card(bundle, repository, license=license)
            added.append(CommitOperationAdd(_CARD_NAME, card.encode()))
        commit = api.create_commit(
            repository,
            added,
            commit_message=commit_message or f"Upload the bundle {bundle.digest[:19]}",
            revision=revision,
        )
    return f"{address}@{commit.oid}"


@contextmanager
def _one_line_errors(address: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into pyinv's, and a missing file into FileNotFoundError."""
    from huggingface_hub import errors

    try:
        yield
    except PyinvError:
        raise
    except errors.OfflineModeIsEnabled:
        raise Unreachable(address, "HF_HUB_OFFLINE is set", wanted=True) from None
    except errors.GatedRepoError:
        raise BundleError(f"{address}: ask for access to it on the hub first") from None
    except errors.RepositoryNotFoundError:
        raise BundleError(
            f"{address}: no such repository, or a private one; give its name as USER/NAME and a "
            "token that may read it, or log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise BundleError(f"{address}: has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError as error:  # a connection that failed
        raise Unreachable(address, _reason(error)) from None
    except errors.EntryNotFoundError:
        raise FileNotFoundError from None
    except errors.HFValidationError as error:
        raise InputError(f"{address}: {_reason(error)}") from None
    except Exception as error:
        if is_local(error):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise BundleError(
                f"{address}: access denied; give a token that has access, or log in with "
                "`hf auth login`"
            ) from None
        if status is not None and 400 <= status < 500 and status != 429:
            raise BundleError(f"{address}: the hub refused ({_reason(error)})") from None
        raise Unreachable(address, _reason(error)) from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
