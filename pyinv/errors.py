"""Every error that pyinv raises on purpose: one line: what was wanted, what came, the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyinv.result import Inversion
    from pyinv.uncertainty import Uncertainty

__all__ = [
    "BundleError",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "InputError",
    "OutOfMemoryError",
    "OutputError",
    "PyinvError",
    "RuleError",
    "RunError",
    "one_line",
]


class PyinvError(Exception):
    """The base of all errors below, so that ``except pyinv.PyinvError`` catches all of them."""


class BundleError(PyinvError):
    """A bundle is missing, foreign, incomplete, damaged, or lacks what the call asks of it."""


class InputError(PyinvError, ValueError):
    """Images, latents or another argument have the wrong shape, type, range or content."""


class RuleError(PyinvError, ValueError):
    """A prior, constraint, solver, penalty, stage or recipe is wrong, or does not fit the prior."""


class RunError(PyinvError, RuntimeError):
    """A run failed in the middle.

    Attributes:
        inversion: of ``invert``, the ``Inversion`` of the targets that were done, the others
            ``cancelled``; else None.
        uncertainty: of ``uncertainty``, what was measured, the other targets NaN; else None.
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

    def __str__(self) -> str:
        return str(self.args[0])


class OutputError(PyinvError):
    """A result cannot be written where it was asked for."""


class DeviceError(PyinvError):
    """The device is not there, this build has no code for it, or its memory is too small."""


class OutOfMemoryError(DeviceError):
    """The device's memory does not hold a batch."""


class DependencyError(PyinvError, ImportError):
    """A package or shared library that pyinv needs is missing, doubled or too old."""


class ExportError(PyinvError):
    """A generator cannot be exported, or its bundle does not agree with PyTorch."""


def one_line(error: BaseException) -> str:
    """Return an error's text as one line, without what its class adds."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
