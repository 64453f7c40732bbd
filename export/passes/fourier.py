"""Discrete Fourier transforms as products with matrices of sines and cosines.

ONNX's DFT takes one axis and has no gradient, and TorchScript's transforms are complex. A long
transform is split into shorter ones (Cooley & Tukey 1965), so that n values cost about n^1.5
products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pyinv.errors import ExportError

__all__ = ["complex_to_real", "fourier"]

# A real and an imaginary part; None for 0.
Parts = tuple[Tensor, Tensor | None]

# Transforms up to this length are one matrix.
_DIRECT = 64
# The longest prime length: its matrix has that many squared entries.
_LONGEST_PRIME = 2048


def fourier(x: Parts, axis: int, *, sign: int, first: int | None = None) -> Parts:
    """The sums of x_j exp(sign 2 pi i j k / n) over an axis of length n, for all k.

    Args:
        x: real and imaginary parts.
        axis: the axis.
        sign: -1 for the forward transform, 1 for the inverse.
        first: return only the first this many of the n sums.
    """
    n = int(x[0].shape[axis])
    whole = (x[0].movedim(axis, -1), None if x[1] is None else x[1].movedim(axis, -1))
    real, imaginary = _along_last(whole, n, sign, n if first is None else first)
    assert imaginary is not None
    return real.movedim(-1, axis), imaginary.movedim(-1, axis)


def complex_to_real(x: Parts, axis: int, n: int) -> Tensor:
    """The inverse transform of n // 2 + 1 Hermitian coefficients to n real values."""
    half = n // 2 + 1
    real, imaginary = x[0].movedim(axis, -1), x[1]
    imaginary = torch.zeros_like(real) if imaginary is None else imaginary.movedim(axis, -1)
    if n > _DIRECT:
        # The other coefficients are the conjugates in reverse.
        mirrored = slice(1, half - 1 if n % 2 == 0 else half)
        real = torch.cat([real, real[..., mirrored].flip(-1)], -1)
        imaginary = torch.cat([imaginary, -imaginary[..., mirrored].flip(-1)], -1)
        result, _ = _along_last((real, imaginary), n, 1, n)
        return result.movedim(-1, axis)
    with _disable_current_modes():
        cosine, sine = _waves(half, n, n)
        twice = torch.full((half, 1), 2.0)
        twice[0] = 1
        if n % 2 == 0:
            twice[-1] = 1
        cosine, sine = cosine * twice, sine * twice
    return (torch.matmul(real, cosine) - torch.matmul(imaginary, sine)).movedim(-1, axis)


def _along_last(x: Parts, n: int, sign: int, first: int) -> Parts:
    p = _factor(n) if n > _DIRECT else 1
    if p == 1:
        if n > _LONGEST_PRIME:
            raise ExportError(
                f"a Fourier transform of length {n}, a multiple of a prime above {_LONGEST_PRIME}, "
                "cannot be exported: pad to a length with small factors, such as a power of 2"
            )
        with _disable_current_modes():
            cosine, sine = _waves(n, first, n)
        return _times(x, cosine, sign * sine)
    # With j = q j1 + j2 and k = k1 + p k2: transforms over j1, factors, transforms over j2.
    q = n // p
    real, imaginary = (None if a is None else a.unflatten(-1, (p, q)).transpose(-1, -2) for a in x)
    assert real is not None
    by_column = _along_last((real, imaginary), p, sign, p)
    with _disable_current_modes():
        cosine, sine = _waves(q, p, n)
        sine = sign * sine
    re, im = by_column
    assert im is not None
    turned = (re * cosine - im * sine, re * sine + im * cosine)
    by_row = _along_last((turned[0].transpose(-1, -2), turned[1].transpose(-1, -2)), q, sign, q)
    real, imaginary = (
        a.transpose(-1, -2).flatten(-2)[..., :first] for a in by_row if a is not None
    )
    return real, imaginary


def _times(x: Parts, cosine: Tensor, sine: Tensor) -> Parts:
    real, imaginary = x
    if imaginary is None:
        return torch.matmul(real, cosine), torch.matmul(real, sine)
    return (
        torch.matmul(real, cosine) - torch.matmul(imaginary, sine),
        torch.matmul(real, sine) + torch.matmul(imaginary, cosine),
    )


def _waves(rows: int, columns: int, n: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2 pi j k / n, [rows, columns]."""
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % n
    angles = turns.double() * (2 * math.pi / n)
    return angles.cos().float(), angles.sin().float()


def _factor(n: int) -> int:
    """The largest factor of n that is at most sqrt(n)."""
    return next(p for p in range(math.isqrt(n), 0, -1) if n % p == 0)
