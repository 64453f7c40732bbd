"""Training of the papers' generators, of autoencoders, and of encoders for any generator.

Configurations do not need PyTorch; the functions ``train_...`` and ``open_generator`` do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyinv.training.autoencoder_configurations import (
    AUTOENCODER_CONFIGURATIONS,
    AutoencoderConfiguration,
    get_autoencoder_configuration,
)
from pyinv.training.configurations import CONFIGURATIONS, GanConfiguration, get_configuration
from pyinv.training.encoder_configurations import (
    ENCODER_CONFIGURATIONS,
    EncoderConfiguration,
    Schedule,
    get_encoder_configuration,
)

if TYPE_CHECKING:
    from pyinv.training.autoencoder import TrainedAutoencoder, train_autoencoder
    from pyinv.training.encoder import TrainedEncoder, train_encoder
    from pyinv.training.frozen import FrozenGenerator, open_generator
    from pyinv.training.gan import TrainedGan, train_gan

__all__ = [
    "AUTOENCODER_CONFIGURATIONS",
    "CONFIGURATIONS",
    "ENCODER_CONFIGURATIONS",
    "AutoencoderConfiguration",
    "EncoderConfiguration",
    "FrozenGenerator",
    "GanConfiguration",
    "Schedule",
    "TrainedAutoencoder",
    "TrainedEncoder",
    "TrainedGan",
    "get_autoencoder_configuration",
    "get_configuration",
    "get_encoder_configuration",
    "open_generator",
    "train_autoencoder",
    "train_encoder",
    "train_gan",
]

_FILES = {
    "FrozenGenerator": "frozen",
    "TrainedAutoencoder": "autoencoder",
    "TrainedEncoder": "encoder",
    "TrainedGan": "gan",
    "open_generator": "frozen",
    "train_autoencoder": "autoencoder",
    "train_encoder": "encoder",
    "train_gan": "gan",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can list the configurations without importing PyTorch.
    if name in _FILES:
        return getattr(importlib.import_module(f"pyinv.training.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
