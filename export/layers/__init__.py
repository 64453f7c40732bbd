"""Split a sequential generator into its first layers and tail, with residuals between layers."""

from .layers import Layers, first_layers, split
from .residuals import ResidualGenerator
from .tail import StandardisedTail, TailScale

__all__ = [
    "Layers",
    "ResidualGenerator",
    "StandardisedTail",
    "TailScale",
    "first_layers",
    "split",
]
