// The parameters of a component's step, its random draws, and the constraint after it. The loops
// over components are in kernels/, so that every device runs the same arithmetic: float32, one
// rounding per operation, in the order written.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"
#include "pyinv/recipe.h"

namespace pyinv {

// The parameters that all lanes of a stage share, resolved once per run.
struct StepRule {
  Prior prior;
  SolverKind solver;
  // Settings of first-order solvers; those that the stage's solver does not have are unused.
  float momentum, beta1, beta2;
  // 1 - beta, subtracted in double: in float 1 - 0.999f is off by 5e-5.
  float one_minus_beta1, one_minus_beta2;
  float log_beta1, log_beta2;
  float epsilon;
  Constraint constraint;
  float inverse_horizon;  // 1 / E
  bool reset_moments;
};

// A component of an attempt's first latent.
PYINV_HOST_DEVICE inline float initial_draw(const Prior& prior, const DrawKey& key,
                                            uint32_t component) {
  const PhiloxWords words = draw_words(key, DrawPurpose::initial, 0, component);
  return prior.kind == PriorKind::uniform ? uniform_draw(words, prior.low, prior.high)
                                          : normal_draw(words, prior.mean, prior.std);
}

// The values that a lane's step needs beyond its arrays.
struct LaneStep {
  DrawKey key;
  uint32_t attempt_step;  // number of the step in the attempt, from 1
  uint32_t stage_step;    // number of the step in the stage, from 1
  float learning_rate;    // after the schedule
  float step_size;        // Adam: the learning rate over the first moment's bias correction
  float second_root;      // Adam: sqrt(1 - beta2^t), the second moment's correction
  float moment_center;    // moment penalty: g += shift + slope * (z - center)
  float moment_shift, moment_slope;
  float prior_slope;  // prior penalty: g += slope * (z - prior.mean)
};

// The probability that a single step resamples a component that is y deviations from the mean,
// 1 - (1 - P)^(1/E). Over a run of E steps it is P(R|z) of Egan et al. (section 3.2).
PYINV_HOST_DEVICE inline float resampling_probability(const StepRule& rule, float y) {
  const Constraint& c = rule.constraint;
  const float size = fabsf(y);
  float p = 0.0f;
  switch (c.kind) {
    case ConstraintKind::none:
    case ConstraintKind::clip:
    case ConstraintKind::stochastic_clip:
      return 0.0f;
    case ConstraintKind::hard_cutoff:
      return size > c.a ? 1.0f : 0.0f;
    case ConstraintKind::logistic_cutoff:
      p = 1.0f / (1.0f + expf(-c.a * (size - c.b)));
      break;
    case ConstraintKind::truncated_normal_cutoff:
      p = size <= c.a ? expf(0.5f * (y * y - c.a * c.a)) : 1.0f;
      break;
  }
  if (p >= 1.0f) return 1.0f;
  return -expm1f(log1pf(-p) * rule.inverse_horizon);
}

// Returns whether the component was resampled, in which case z is the draw.
PYINV_HOST_DEVICE inline bool constrain(const StepRule& rule, const LaneStep& lane,
                                        uint32_t component, float& z) {
  const Constraint& c = rule.constraint;
  if (!(fabsf(z) <= 3.402823466e38f)) return false;
  switch (c.kind) {
    case ConstraintKind::none:
      return false;
    case ConstraintKind::clip:
      z = fminf(fmaxf(z, c.low), c.high);
      return false;
    case ConstraintKind::stochastic_clip:
      if (z > c.low && z < c.high) return false;
      z = uniform_draw(draw_words(lane.key, DrawPurpose::resample, lane.attempt_step, component),
                       c.low, c.high);
      return true;
    case ConstraintKind::hard_cutoff:
    case ConstraintKind::logistic_cutoff:
    case ConstraintKind::truncated_normal_cutoff:
      break;
  }
  const float q = resampling_probability(rule, (z - rule.prior.mean) / rule.prior.std);
  if (!(q > 0.0f)) return false;
  const PhiloxWords words =
      draw_words(lane.key, DrawPurpose::resample, lane.attempt_step, component);
  if (q < 1.0f && decision_uniform(words) >= q) return false;
  z = normal_draw(words, rule.prior.mean, rule.prior.std);
  return true;
}

}  // namespace pyinv
