"""Training of the papers' generators.

Configurations can be read without PyTorch; ``train_gan`` needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyinv.training.configurations import CONFIGURATIONS, GanConfiguration, get_configuration

if TYPE_CHECKING:
    from pyinv.training.gan import TrainedGan, train_gan

__all__ = ["CONFIGURATIONS", "GanConfiguration", "TrainedGan", "get_configuration", "train_gan"]


def __getattr__(name: str) -> Any:
    # So that a command line can list the configurations without waiting for PyTorch.
    if name in ("TrainedGan", "train_gan"):
        from pyinv.training import gan

        return getattr(gan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
