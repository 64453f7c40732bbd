"""How well latents and images were recovered: the measures of the papers, in NumPy alone.

Functions take plain arrays, one row or one value a target. Shares are from 0 to 1, never percent.
A target whose error is NaN, because its run left the finite numbers, counts as not recovered.
"""

from pyinv.evaluation.comparison import rank_correlation, significant_win_rate, win_rate
from pyinv.evaluation.latents import (
    cosine_distance,
    latent_error,
    pairwise_distance,
    relative_error,
)
from pyinv.evaluation.noise import add_noise
from pyinv.evaluation.pixels import mean_absolute_error
from pyinv.evaluation.summary import mean, median, quantile, recovery_rate

__all__ = [
    "add_noise",
    "cosine_distance",
    "latent_error",
    "mean",
    "mean_absolute_error",
    "median",
    "pairwise_distance",
    "quantile",
    "rank_correlation",
    "recovery_rate",
    "relative_error",
    "significant_win_rate",
    "win_rate",
]
