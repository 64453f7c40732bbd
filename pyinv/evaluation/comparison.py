"""Comparisons between two methods on the same targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyinv.errors import InputError
from pyinv.evaluation._checks import (
    FloatArray,
    check_errors,
    check_number,
    check_same_length,
    check_values,
)


def win_rate(errors: Any, baseline_errors: Any) -> float:
    r"""Return the share of targets with a lower error than the baseline's.

    $$
    \frac{1}{N} \sum_n [e_n < b_n]
    $$

    Args:
        errors: [N], at least 0; NaN counts as infinite, so it never wins.
        baseline_errors: [N], the baseline's errors on the same targets.

    Returns:
        a share of all targets, from 0 to 1 (the paper prints percent). A tie is not a win.

    Raises:
        InputError: no errors, a negative error, or arrays of different lengths.

    Source: Egan et al. 2018, Table 1, "wins"; section 4.2.2. The baseline there is "disabled".
    """
    ours, baseline = _check_both(errors, baseline_errors)
    return float((ours < baseline).mean())


def significant_win_rate(errors: Any, baseline_errors: Any, factor: float = 2) -> float:
    r"""Return the share of wins among targets whose error differs from the baseline's by a factor.

    $$
    \frac{W}{W + L}, \quad W = \sum_n [f e_n \le b_n \ne e_n],
    \quad L = \sum_n [f b_n \le e_n \ne b_n]
    $$

    Targets on which both methods do about equally well do not count, because chance decides which
    is ahead.

    Args:
        errors: [N], at least 0; NaN counts as infinite.
        baseline_errors: [N], the baseline's errors on the same targets.
        factor: f, above 1. A difference of exactly f counts: "better by at least a factor of 2".

    Returns:
        a share from 0 to 1 (the paper prints percent); NaN if no target differs by the factor.

    Raises:
        InputError: no errors, a negative error, arrays of different lengths, or a factor out of
            range.

    Source: Egan et al. 2018, Table 1, "sig wins"; section 4.2.2.
    """
    times = check_number(factor, "factor", above=1)
    ours, baseline = _check_both(errors, baseline_errors)
    differ = ours != baseline  # excludes two errors of 0 and two failures
    won = int((differ & (times * ours <= baseline)).sum())
    lost = int((differ & (times * baseline <= ours)).sum())
    return won / (won + lost) if won + lost else math.nan


def rank_correlation(a: Any, b: Any) -> float:
    r"""Return Kendall's rank correlation tau-b, the similarity of two orderings.

    $$
    \tau_b = \frac{P - Q}{\sqrt{(P + Q + T_a) (P + Q + T_b)}}
    $$

    over all pairs of items: P pairs are in the same order in both, Q in opposite order, T_a tied
    only in a, T_b tied only in b. The reports use it to compare our ordering of a table's rows with
    the paper's.

    Args:
        a: [N] numbers, N >= 2, such as our result for each method.
        b: [N] numbers for the same items, such as the paper's. Items with NaN in a or b are left
            out.

    Returns:
        1 for the same order, -1 for the opposite order, about 0 for unrelated ones; NaN if all
        values in a or all values in b are equal, or if fewer than two items are left.

    Raises:
        InputError: fewer than two items, or arrays of different lengths.

    Source: Kendall 1945, "The treatment of ties in ranking problems", Biometrika 33(3).
    """
    one, other = check_values(a, "a"), check_values(b, "b")
    check_same_length(one, other, ("a", "b"))
    if len(one) < 2:
        raise InputError("a must be [N] numbers with N >= 2, got 1; an ordering takes two")
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known], other[known]
    agreement = untied_one = untied_other = 0
    for row in range(len(one) - 1):
        order, other_order = _order(one, row), _order(other, row)
        agreement += int(order @ other_order)
        untied_one += int(np.count_nonzero(order))
        untied_other += int(np.count_nonzero(other_order))
    if untied_one == 0 or untied_other == 0:
        return math.nan
    return agreement / math.sqrt(untied_one * untied_other)


def _order(values: FloatArray, row: int) -> Any:
    """Compare an item with all later ones: 1 for above, 0 for equal, -1 for below."""
    # The sign of a difference would fail for infinite values: inf - inf is NaN.
    return (values[row + 1 :] > values[row]).astype(int) - (values[row + 1 :] < values[row])


def _check_both(errors: Any, baseline_errors: Any) -> tuple[FloatArray, FloatArray]:
    ours = check_errors(errors, "errors")
    baseline = check_errors(baseline_errors, "baseline_errors")
    check_same_length(ours, baseline, ("errors", "baseline_errors"))
    return ours, baseline
