"""Every error that pyinv raises on purpose: one line with what was wanted, what came, the mend."""

from __future__ import annotations

__all__ = [
    "BundleError",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "InputError",
    "OutputError",
    "PyinvError",
    "RuleError",
]


class PyinvError(Exception):
    """The base of all errors below, so that ``except pyinv.PyinvError`` catches all of them."""


class BundleError(PyinvError):
    """A bundle is missing, foreign, incomplete, damaged, or lacks what the call asks of it."""


class InputError(PyinvError, ValueError):
    """Images, latents or another argument have the wrong shape, type, range or content."""


class RuleError(PyinvError, ValueError):
    """A prior, constraint, solver, penalty, stage or recipe is wrong, or does not fit the prior."""


class OutputError(PyinvError):
    """A result cannot be written where it was asked for."""


class DeviceError(PyinvError):
    """The device asked for is not there, or this build has no code for it."""


class DependencyError(PyinvError, ImportError):
    """A package or shared library that pyinv needs is missing, doubled or too old."""


class ExportError(PyinvError):
    """A generator cannot be exported, or its bundle does not agree with PyTorch."""
