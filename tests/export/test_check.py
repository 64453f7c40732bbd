"""The exporter's comparison with PyTorch finds functions that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from pyinv import ExportError, Normal  # noqa: E402
from pyinv.export.capture.trace import Shapes  # noqa: E402
from pyinv.export.check import Reference, check_function  # noqa: E402


class Normalised(nn.Module):
    """A latent divided by its root mean square."""

    def __init__(self, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, latent: Tensor) -> Tensor:
        return latent * (latent.square().mean(1, keepdim=True) + self.epsilon).rsqrt()


REFERENCE = Reference(Normalised(), Shapes((6,), (6,)), prior=Normal(), value_range=(-1.0, 1.0))


def checked(function: Callable[[Tensor], Tensor]) -> float:
    return check_function(
        "forward", lambda x: {"image": function(x["latent"])}, REFERENCE, "forward", None
    )


def test_what_agrees_passes() -> None:
    assert checked(Normalised()) <= 1e-5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: Normalised()(x) + 1e-4, "at batch 1: image is off by"),
        (Normalised(epsilon=0.0), "latents of the prior times 0: image is off by inf"),
        (Normalised(epsilon=1e-16), "latents of the prior times 1e-06: image is off by"),
        (lambda x: Normalised()(x.clamp(-5, 5)), "latents of the prior times 10: image is off by"),
    ],
)
def test_what_differs_is_named(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ExportError, match=f"forward does not agree with PyTorch .*{message}"):
        checked(function)


class Overflows(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        return latent * 1e38 * 10 / 1e38


def test_a_wrong_result_is_found_where_float32_overflows() -> None:
    huge = Reference(Overflows(), REFERENCE.shapes, prior=Normal(), value_range=(-1.0, 1.0))

    def wrong(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": torch.zeros_like(inputs["latent"])}

    with pytest.raises(ExportError, match=r"image is off by 1\.0e\+00"):
        check_function("forward", wrong, huge, "forward", None)
