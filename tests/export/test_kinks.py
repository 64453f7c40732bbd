"""Latents at which a gradient jumps, in the comparison with PyTorch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="export needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

from torch import Tensor, nn  # noqa: E402

import pyinv  # noqa: E402
from pyinv.errors import ExportError  # noqa: E402
from pyinv.export.capture.trace import Shapes  # noqa: E402
from pyinv.export.check import Reference, check_function  # noqa: E402
from pyinv.export.derivatives.losses import resolve_losses  # noqa: E402


class Kinked(nn.Module):
    """A generator whose gradient jumps at some of the latents that it is checked with."""

    def __init__(self) -> None:
        super().__init__()
        self.kinks = torch.zeros(1)

    def forward(self, latent: Tensor) -> Tensor:
        kinks = self.kinks.to(latent.dtype)
        return torch.relu(latent[:, :1] - kinks) + latent.sum(1, keepdim=True)


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_latent_at_a_kink_is_no_error_and_hides_none(factor: float) -> None:
    generator = Kinked()
    shapes = Shapes((3,), (6,))
    reference = Reference(generator, shapes, prior=pyinv.Normal(), value_range=(-1, 1))
    drawn = [reference.draw(17, seed=17000 + draw)["latent"][:2, 0] for draw in range(3)]
    generator.kinks = torch.cat(drawn)
    (loss,) = resolve_losses("mse", value_range=(-1, 1))

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {**inputs, "latent": inputs["latent"] * (1 + 2e-7 * inputs["latent"].sign())}
        found = reference.objective(loss, moved)
        return {**found, "gradient": found["gradient"] * factor}

    if factor == 1.0:
        check_function("objective", run, reference, "objective", loss)
    else:
        with pytest.raises(ExportError, match="gradient is off"):
            check_function("objective", run, reference, "objective", loss)
