"""Exceptions and the warning.

Each message is one line: what was expected, what was found and how to fix it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyinv.result import Inversion
    from pyinv.uncertainty import Uncertainty

__all__ = [
    "BundleError",
    "CancelledError",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "InputError",
    "OutOfMemoryError",
    "OutputError",
    "PyinvError",
    "PyinvWarning",
    "RuleError",
    "RunError",
    "check_source",
    "one_line",
    "printable",
    "reading",
]

# Control characters, formats (such as the direction of writing), surrogates and line ends.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


class PyinvError(Exception):
    """The base of all pyinv exceptions: ``except pyinv.PyinvError`` catches all of them."""

    def __str__(self) -> str:
        return printable(str(self.args[0])) if self.args else ""


class PyinvWarning(UserWarning):
    """A likely mistake that would give a wrong result; ``strict=True`` makes it an error."""


class BundleError(PyinvError):
    """A bundle is missing, invalid, incomplete, damaged, or does not support what was requested."""


class InputError(PyinvError, ValueError):
    """Images, latents or another argument have the wrong shape, type, range or content."""


class RuleError(PyinvError, ValueError):
    """A prior, solver, constraint, penalty, stage or recipe is invalid, or unfit for the prior."""


class RunError(PyinvError, RuntimeError):
    """A run failed before it finished.

    Attributes:
        inversion: if ``invert`` failed, the ``Inversion`` so far, with unfinished targets
            ``cancelled``; otherwise None.
        uncertainty: if ``uncertainty`` failed, the ``Uncertainty`` so far, with unfinished targets
            NaN; otherwise None.
    """

    def __init__(
        self,
        message: str,
        inversion: Inversion | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        super().__init__(message, inversion, uncertainty)
        self.inversion = inversion
        self.uncertainty = uncertainty


class CancelledError(PyinvError):
    """A call was ended by ``timeout`` or ``cancel`` before it had a result."""


class OutputError(PyinvError):
    """A result cannot be written to the requested path."""


class DeviceError(PyinvError):
    """The device does not exist, this build does not support it, or its memory is too small."""


class OutOfMemoryError(DeviceError):
    """A batch does not fit in the device's memory."""


class DependencyError(PyinvError, ImportError):
    """A package or shared library that pyinv needs is missing, installed twice or too old."""


class ExportError(PyinvError):
    """A generator cannot be exported, or its bundle's results differ from PyTorch's."""


def one_line(error: BaseException) -> str:
    """Return an error's message as one line, without the decoration of its class."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    r"""Return a text that can be shown: control characters are written as ``\x1b``.

    Names in files of others could otherwise control the terminal. Line ends stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN and character != "\n"
        else character
        for character in text
    )


def check_source(path: Path) -> None:
    """Raise InputError if a path is no file or folder: reading a pipe or device may never end."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not (path.is_file() or path.is_dir()):
        raise InputError(
            f"{path}: expected a file or folder, got a pipe or device; copy it to a file"
        )


@contextmanager
def reading(name: Any, kind: str, remedy: str) -> Iterator[None]:
    """Raise InputError for whatever a decoder raises on a damaged file.

    Decoders raise errors of many classes, OverflowError and TokenError among them. Put only the
    decoder's calls into the ``with`` block: errors of other code would be hidden.

    Args:
        name: the file's name in the message.
        kind: what it should be, such as "PNG image".
        remedy: what to do about it.
    """
    try:
        yield
    except PyinvError:
        raise
    except MemoryError:
        raise InputError(f"{name}: does not fit into memory") from None
    except Exception as error:
        raise InputError(
            f"{name}: not a readable {kind}, or truncated ({one_line(error)}); {remedy}"
        ) from None
