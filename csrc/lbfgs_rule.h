// One lane's trial by a quasi-Newton step: the accepted latent z, and t times the direction -H g. g
// is the gradient of the loss with its penalty, H the inverse Hessian as the last pairs know it
// (Nocedal 1980; Liu & Nocedal 1989; the recursion is algorithm 7.4 of Nocedal & Wright 2006). At a
// bound, what points outwards stays out of g and of the direction (Bertsekas 1982). The rule, apart
// from the loops (kernels/): pairs in float, all sums in double.
#pragma once

#include "trial_rule.h"

namespace pyinv {

constexpr int64_t kMostPairs = 1000;

// A lane's pairs. Each array of s or y has `size` components.
struct Pairs {
  float* values;
  double* products;  // s y
  double* weights;   // that the recursion gives a pair on its way there, for its way back
  int64_t size, history;

  // The place of a pair, counted from the newest one of `made`.
  PYINV_HOST_DEVICE int64_t place(int64_t made, int64_t age) const {
    return (made - 1 - age) % history;
  }
  PYINV_HOST_DEVICE float* s(int64_t place) const { return values + 2 * place * size; }
  PYINV_HOST_DEVICE float* y(int64_t place) const { return values + (2 * place + 1) * size; }
};

PYINV_HOST_DEVICE inline Pairs pairs_of(const LaneArrays& lanes, int64_t lane) {
  double* products = lanes.products + 2 * lane * lanes.history;
  return {.values = lanes.pairs + 2 * lane * lanes.history * lanes.latent_size,
          .products = products,
          .weights = products + lanes.history,
          .size = lanes.latent_size,
          .history = lanes.stages[lanes.state[lane].stage].solver.history};
}

// A component of the pair that a newly accepted latent gives. Both gradients are those of the loss
// with the penalty that the step was tried under.
struct PairComponent {
  float s, y;
};
PYINV_HOST_DEVICE inline PairComponent pair_component(const Accepted& before, double former_slope,
                                                      int64_t i, float latent, float gradient) {
  const double s = double{latent} - before.latent[i];
  const double y = (double{gradient} - before.gradient[i]) + former_slope * s;
  return {static_cast<float>(s), static_cast<float>(y)};
}

// Whether a pair is kept: along its step the slope must rise, or H would not stay positive.
PYINV_HOST_DEVICE inline bool is_curved(double sy, double yy) {
  return is_positive(sy) && is_positive(yy) && sy > 1e-10 * yy;
}

PYINV_HOST_DEVICE inline void count_pair(const Pairs& pairs, double sy, double yy, Search& search) {
  ++search.made;
  if (search.pairs < pairs.history) ++search.pairs;
  search.curvature = sy / yy;
}

// What the slope is multiplied by where there are no pairs.
PYINV_HOST_DEVICE inline double first_scale(const RunRule& rule, const StageRule& stage,
                                            double slope_norm) {
  return stage.solver.first_step * rule.prior_moments.std / slope_norm;
}

}  // namespace pyinv
