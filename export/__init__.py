"""Export a PyTorch generator to a bundle that runs without PyTorch.

Lives in the folder ``export`` of a checkout and is installed as ``pyinv.export``.
"""

import importlib.util

if __name__ != "pyinv.export":
    raise ImportError(
        f"this package is pyinv.export, not {__name__}: install the checkout with "
        "`pip install .` and import pyinv.export"
    )

from pyinv.conditions import Condition, Label, OneHot
from pyinv.errors import DependencyError, ExportError
from pyinv.extras import install_command

_missing = [
    name for name in ("torch", "onnx", "onnxscript") if importlib.util.find_spec(name) is None
]
if _missing:
    raise DependencyError(f"export needs {', '.join(_missing)}: {install_command('export')}")

from .capture.factory import load_factory, load_generator  # noqa: E402
from .capture.onnx_file import load_onnx  # noqa: E402
from .derivatives.losses import whitened  # noqa: E402
from .derivatives.perceptual import perceptual  # noqa: E402
from .encoder import add_encoder  # noqa: E402
from .exporter import export  # noqa: E402
from .layers import Layers, TailScale, first_layers, split  # noqa: E402
from .runtimes.onnx_reader import read_generator  # noqa: E402
from .whitening import Whitening  # noqa: E402

__all__ = [
    "Condition",
    "ExportError",
    "Label",
    "Layers",
    "OneHot",
    "TailScale",
    "Whitening",
    "add_encoder",
    "export",
    "first_layers",
    "load_factory",
    "load_generator",
    "load_onnx",
    "perceptual",
    "read_generator",
    "split",
    "whitened",
]
