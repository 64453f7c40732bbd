"""Summary statistics of the errors of many targets."""

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

    Egan et al. count final errors. Lipton & Tripathi's code counts the lowest error at any step,
    ``Inversion.min_latent_error``.

    Args:
        errors: [N], at least 0; NaN counts as not recovered.
        threshold: epsilon, above 0. An error equal to it does not count as recovered.

    Returns:
        a share from 0 to 1.

    Raises:
        InputError: no errors, a negative error, or a threshold out of range.

    Source: Lipton & Tripathi 2017, Table 1; Egan et al. 2018, Table 1, columns 2-6.
    """
    bound = check_number(threshold, "threshold", above=0)
    return float((check_errors(errors, "errors") < bound).mean())


def mean(values: Any) -> float:
    r"""Return the mean, $\frac{1}{N} \sum_n v_n$; NaN if any value is NaN.

    Args:
        values: [N] numbers, such as the errors of targets.

    Raises:
        InputError: no values.

    Source: Creswell & Bharath 2016, Tables 2 and 3; Egan et al. 2018, Table 1, "avg err".
    """
    return float(check_values(values, "values").mean())


def median(values: Any) -> float:
    """Return the median, which a few failed runs do not affect; NaN if any value is NaN.

    Args:
        values: [N] numbers. For an even N, the median is the mean of the two middle values.

    Raises:
        InputError: no values.
    """
    return quantile(values, 0.5)


def quantile(values: Any, fraction: float) -> float:
    """Return the value below which a fraction of the values lie; NaN if any value is NaN.

    Interpolates linearly between two values (Hyndman & Fan 1996, definition 7).

    Args:
        values: [N] numbers.
        fraction: 0 gives the lowest, 0.5 the median, 1 the highest.

    Raises:
        InputError: no values, or a fraction out of range.
    """
    share = check_number(fraction, "fraction", at_least=0, at_most=1)
    ordered = np.sort(check_values(values, "values"))  # NaN last
    if np.isnan(ordered[-1]):
        return math.nan
    below, part = divmod(share * (len(ordered) - 1), 1)
    low, high = ordered[int(below)], ordered[math.ceil(below + part)]
    # Interpolating between two infinite values would give NaN.
    return float(low if low == high else low + part * (high - low))
