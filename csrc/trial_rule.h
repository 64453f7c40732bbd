// One lane's trial, whatever made it: a step from the accepted latent, constrained, and what the
// lane keeps of it until it is evaluated. The rule, apart from the loops (kernels/).
#pragma once

#include <cmath>

#include "lane_rule.h"

namespace pyinv {

// A lane's accepted latent, and the loss with its penalty there.
struct Accepted {
  const float *latent, *gradient;
  int64_t size;
  double center, slope;
  float low, high;  // a component on a bound that wants to go beyond it is held

  // Down the slope of the loss with its penalty.
  PYINV_HOST_DEVICE double right_side(int64_t i) const {
    return -(gradient[i] + slope * (latent[i] - center));
  }
  PYINV_HOST_DEVICE bool held(int64_t i) const {
    const double wanted = right_side(i);
    return (latent[i] <= low && wanted < 0.0) || (latent[i] >= high && wanted > 0.0);
  }
};

PYINV_HOST_DEVICE inline Accepted accepted_of(const LaneArrays& lanes, int64_t lane) {
  const LaneState& state = lanes.state[lane];
  const Constraint& constraint = lanes.stages[state.stage].step.constraint;
  const int64_t first = lane * lanes.latent_size;
  const bool bounded = constraint.kind == ConstraintKind::clip;
  return {.latent = lanes.second_moment + first,
          .gradient = lanes.first_moment + first,
          .size = lanes.latent_size,
          .center = lanes.rule->prior.mean,
          .slope = state.trust.prior_slope,
          .low = bounded ? constraint.low : -INFINITY,
          .high = bounded ? constraint.high : INFINITY};
}

PYINV_HOST_DEVICE inline bool is_positive(double value) {
  return value > 0.0 && value <= 1.7976931348623157e308;
}

// The trial's component, constrained; false if a float cannot hold it.
PYINV_HOST_DEVICE inline bool try_component(const StepRule& rule, const LaneStep& lane,
                                            int64_t component, float accepted, double step,
                                            float& z) {
  const double moved = accepted + step;
  if (!(fabs(moved) <= 3.402823466e38)) return false;
  z = static_cast<float>(moved);
  constrain(rule, lane, static_cast<uint32_t>(component), z);
  return true;
}

// A component's share of what the penalty falls by in the step that the trial really is.
PYINV_HOST_DEVICE inline double penalty_fall(const Accepted& accepted, int64_t i, double step) {
  return -accepted.slope * step * ((accepted.latent[i] - accepted.center) + 0.5 * step);
}

// The lane has its trial, or nothing gave it one: its stage then ends where it was accepted
// last.
PYINV_HOST_DEVICE inline void end_trial(const RunRule& rule, const StageRule& stage, bool found,
                                        double predicted, double penalty_falls, LaneState& lane) {
  lane.action = 0;
  if (found) {
    lane.trust.predicted = predicted;
    lane.trust.penalty_fall = penalty_falls;
    lane.trust.trial = true;
    count_update(lane);
  } else {
    lane.stop = static_cast<uint8_t>(Status::stalled);
    decide(rule, stage, lane.previous_loss, lane);
  }
}

}  // namespace pyinv
