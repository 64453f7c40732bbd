"""Recover the latents of images, for any differentiable generator.

``pyinv.export`` turns a PyTorch generator into a bundle. ``Inverter`` opens a bundle and inverts
images with it, without PyTorch.
"""

from importlib.machinery import EXTENSION_SUFFIXES as _SUFFIXES
from importlib.metadata import version as _version
from pathlib import Path as _Path
from pkgutil import extend_path as _extend_path

# In a checkout Python finds this directory before the installed package, but only the installed one
# has the extension and pyinv.export: search that one as well.
if not any((_Path(__file__).parent / f"_core{suffix}").exists() for suffix in _SUFFIXES):
    __path__ = _extend_path(__path__, __name__)

from pyinv import _core
from pyinv.bundle import Bundle, Manifest
from pyinv.constraints import (
    Clip,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
    TruncatedNormalCutoff,
)
from pyinv.errors import (
    BundleError,
    CancelledError,
    DependencyError,
    DeviceError,
    ExportError,
    InputError,
    OutOfMemoryError,
    OutputError,
    PyinvError,
    PyinvWarning,
    RuleError,
    RunError,
)
from pyinv.images import load_images
from pyinv.inverter import Inverter
from pyinv.jobs import JobStopped, JobSummary, merge_jobs, read_job, run_job
from pyinv.penalties import MomentPenalty, PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion, Status
from pyinv.size_limits import set_size_limits
from pyinv.solvers import (
    LBFGS,
    Adam,
    Constant,
    Cosine,
    GradientDescent,
    LevenbergMarquardt,
    RMSprop,
    StepDecay,
)
from pyinv.streaming import TargetResult
from pyinv.target_ids import target_id
from pyinv.uncertainty import Uncertainty

__version__ = _version("pyinv")

__all__ = [
    "LBFGS",
    "Adam",
    "Bundle",
    "BundleError",
    "CancelledError",
    "Clip",
    "Constant",
    "Cosine",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "GradientDescent",
    "HardCutoff",
    "InputError",
    "Inversion",
    "Inverter",
    "JobStopped",
    "JobSummary",
    "LevenbergMarquardt",
    "LogisticCutoff",
    "Manifest",
    "MomentPenalty",
    "NoConstraint",
    "Normal",
    "OutOfMemoryError",
    "OutputError",
    "PriorPenalty",
    "PyinvError",
    "PyinvWarning",
    "RMSprop",
    "Recipe",
    "RuleError",
    "RunError",
    "Stage",
    "Status",
    "StepDecay",
    "StochasticClip",
    "TargetResult",
    "TruncatedNormalCutoff",
    "Uncertainty",
    "Uniform",
    "cmake_dir",
    "load_images",
    "merge_jobs",
    "read_job",
    "run_job",
    "set_size_limits",
    "target_id",
]


def cmake_dir() -> str:
    """Return the directory of the C++ package, for CMake's ``find_package(pyinv)``.

    Examples:
        ``cmake -B build -Dpyinv_DIR=$(python -c "import pyinv; print(pyinv.cmake_dir())")``
    """
    return str(_Path(_core.__file__).parent / "lib" / "cmake" / "pyinv")
