"""Recover the latents behind images, for any differentiable generator.

``Inverter`` opens a bundle that ``pyinv.export`` wrote and inverts images against it; needs no
PyTorch. ``pyinv.export`` turns a PyTorch generator into a bundle.
"""

from importlib.metadata import version as _version
from pkgutil import extend_path as _extend_path

# In a checkout Python finds this folder before the installed package, which alone has the extension
# and pyinv.export: look for what is missing there.
__path__ = _extend_path(__path__, __name__)

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
    DependencyError,
    DeviceError,
    ExportError,
    InputError,
    OutputError,
    PyinvError,
    RuleError,
)
from pyinv.images import load_images
from pyinv.inverter import Inverter
from pyinv.penalties import MomentPenalty, PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion, Status
from pyinv.solvers import Adam, Constant, Cosine, GradientDescent, StepDecay

__version__ = _version("pyinv")

__all__ = [
    "Adam",
    "Bundle",
    "BundleError",
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
    "LogisticCutoff",
    "Manifest",
    "MomentPenalty",
    "NoConstraint",
    "Normal",
    "OutputError",
    "PriorPenalty",
    "PyinvError",
    "Recipe",
    "RuleError",
    "Stage",
    "Status",
    "StepDecay",
    "StochasticClip",
    "TruncatedNormalCutoff",
    "Uniform",
    "load_images",
]
