"""The papers' metrics: how well latents and images are recovered, and what a search finds.

Functions take plain arrays with one row or one value per target. Shares are from 0 to 1, not in
percent. A target whose error is NaN, because its run diverged, counts as not recovered. Most
functions need only NumPy. Hashes, blur and search import the libraries of the extra ``papers`` when
they are called.
"""

from pyinv.evaluation.comparison import rank_correlation, significant_win_rate, win_rate
from pyinv.evaluation.degradations import change_colour, gaussian_blur, occlude
from pyinv.evaluation.hashes import (
    colour_histogram,
    hash_similarity,
    histogram_intersection,
    image_hash,
)
from pyinv.evaluation.latents import (
    cosine_distance,
    latent_error,
    pairwise_distance,
    relative_error,
)
from pyinv.evaluation.noise import add_noise
from pyinv.evaluation.pixels import mean_absolute_error
from pyinv.evaluation.retrieval import Neighbours, hit_rate, label_similarity, rank_of, search
from pyinv.evaluation.summary import mean, median, quantile, recovery_rate

__all__ = [
    "Neighbours",
    "add_noise",
    "change_colour",
    "colour_histogram",
    "cosine_distance",
    "gaussian_blur",
    "hash_similarity",
    "histogram_intersection",
    "hit_rate",
    "image_hash",
    "label_similarity",
    "latent_error",
    "mean",
    "mean_absolute_error",
    "median",
    "occlude",
    "pairwise_distance",
    "quantile",
    "rank_correlation",
    "rank_of",
    "recovery_rate",
    "relative_error",
    "search",
    "significant_win_rate",
    "win_rate",
]
