"""One number for the errors of many targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyinv.evaluation._checks import check_errors, check_number, check_values


def recovery_rate(errors: Any, threshold: float) -> float:
    r"""Return the share of targets that were recovered.

    $$
    \frac{1}{N} \sum_n [e_n < \epsilon]
    $$

    Of final errors it is Egan's count; of ``Inversion.min_latent_error``, the lowest error at any
    step, it is that of Lipton & Tripathi, whose code counts a latent once it came near enough.

    Args:
        errors: [N], from 0; NaN counts as not recovered.
        threshold: epsilon, above 0. An error equal to it is not below it.

    Returns:
        a share from 0 to 1.

    Raises:
        InputError: no errors, a negative one, or no such threshold.

    Source: Lipton & Tripathi 2017, Table 1; Egan et al. 2018, Table 1, columns 2-6.
    """
    bound = check_number(threshold, "threshold", above=0)
    return float((check_errors(errors, "errors") < bound).mean())


def mean(values: Any) -> float:
    r"""Return the mean, $\frac{1}{N} \sum_n v_n$; NaN when one of the values is NaN.

    Args:
        values: [N] numbers: errors of targets, or figures to average.

    Raises:
        InputError: no values.

    Source: Creswell & Bharath 2016, Tables 2 and 3; Egan et al. 2018, Table 1, "avg err".
    """
    return float(check_values(values, "values").mean())


def median(values: Any) -> float:
    """Return the median, which a few runs that failed do not move; NaN when a value is NaN.

    Args:
        values: [N] numbers. For an even N, the mean of the two in the middle.

    Raises:
        InputError: no values.
    """
    return quantile(values, 0.5)


def quantile(values: Any, fraction: float) -> float:
    """Return the value that a fraction of the values is below; NaN when a value is NaN.

    Between two values it is interpolated linearly (Hyndman & Fan 1996, definition 7).

    Args:
        values: [N] numbers.
        fraction: 0 gives the lowest, 0.5 the median, 1 the highest.

    Raises:
        InputError: no values, or no such fraction.
    """
    share = check_number(fraction, "fraction", at_least=0, at_most=1)
    ordered = np.sort(check_values(values, "values"))  # NaN last
    if np.isnan(ordered[-1]):
        return math.nan
    below, part = divmod(share * (len(ordered) - 1), 1)
    low, high = ordered[int(below)], ordered[math.ceil(below + part)]
    # Without this, two infinite errors would have no number between them.
    return float(low if low == high else low + part * (high - low))
