// One lane's trial: the step that solves its damped normal equations,
//
//   (H + (c + lambda m) I) delta = -(g + c (z - mean)),
//
// H the gram at the accepted latent z, g its gradient, c the prior penalty's slope, m the mean of
// H's diagonal (Levenberg 1944, Marquardt 1963; the lane's damping lambda follows how well the
// model foretold the trial before, see lane_rule.h). The rule, apart from the loops (kernels/), so
// that every device runs the same arithmetic: double, one rounding an operation, every sum in the
// order of its terms' columns.
#pragma once

#include "trial_rule.h"

namespace pyinv {

// A gram of more takes megabytes a lane, and hundreds of forward passes.
constexpr int64_t kMostSolvedComponents = 512;

// How often one trial raises a damping whose matrix is not positive definite.
constexpr int kMostRaises = 30;

// Of the packed lower triangle: row i begins at packed_row(i).
PYINV_HOST_DEVICE inline int64_t packed_row(int64_t i) { return i * (i + 1) / 2; }

// A lane's, at its accepted latent.
struct NormalEquations : Accepted {
  const float* gram;

  // Of the matrix; what is held is left out of it. `damping` is lambda m.
  PYINV_HOST_DEVICE double element(int64_t i, int64_t j, bool held, double damping) const {
    if (held) return i == j ? 1.0 : 0.0;
    const double value = gram[i * size + j];
    return i == j ? value + (slope + damping) : value;
  }
};

PYINV_HOST_DEVICE inline NormalEquations normal_equations(const LaneArrays& lanes, int64_t lane) {
  return {accepted_of(lanes, lane), lanes.gram + lane * lanes.gram_size};
}

// m; 1 for a gram that says nothing of the latent's size.
PYINV_HOST_DEVICE inline double damping_unit(double mean_diagonal) {
  return mean_diagonal > 0.0 ? mean_diagonal : 1.0;
}

// A component's share of what the model falls by in the step that the trial really is. `bend`
// is its component of H times that step.
PYINV_HOST_DEVICE inline double model_fall(const NormalEquations& equations, int64_t i, double step,
                                           double bend) {
  return step * (equations.right_side(i) - 0.5 * (bend + equations.slope * step));
}

}  // namespace pyinv
