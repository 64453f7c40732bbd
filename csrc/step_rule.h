// The update of one latent component: penalty, solver, constraint. The rule, apart from the loops
// over components (kernels/), so that every device runs the same arithmetic: float32, one
// rounding an operation, in the order written.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"
#include "pyinv/recipe.h"

namespace pyinv {

// What all lanes of a stage share, resolved once per run.
struct StepRule {
  Prior prior;
  SolverKind solver;
  float momentum, beta1, beta2;
  float rest1, rest2;  // 1 - beta, subtracted in double: in float 1 - 0.999f is off by 5e-5
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

// What one lane's update needs beyond its arrays.
struct LaneStep {
  DrawKey key;
  uint32_t update;        // of the attempt, from 1
  uint32_t stage_update;  // of the stage, from 1
  float learning_rate;    // after the schedule
  float step_size;        // Adam: the learning rate over the first moment's bias correction
  float second_root;      // Adam: sqrt(1 - beta2^t), the second's
  float moment_center;    // moment penalty: g += shift + slope * (z - center)
  float moment_shift, moment_slope;
  float prior_slope;  // prior penalty: g += slope * (z - prior.mean)
};

// The chance that this one update resamples a component standing y deviations from the mean; over a
// whole run of E updates it is Egan et al.'s P(R|z): per update 1 - (1 - P)^(1/E) (their
// section 3.2).
PYINV_HOST_DEVICE inline float resampling_probability(const StepRule& rule, float y) {
  const Constraint& c = rule.constraint;
  const float size = fabsf(y);
  float p = 0.0f;
  if (c.kind == ConstraintKind::hard_cutoff) return size > c.a ? 1.0f : 0.0f;
  if (c.kind == ConstraintKind::logistic_cutoff) {
    p = 1.0f / (1.0f + expf(-c.a * (size - c.b)));
  } else {
    p = size <= c.a ? expf(0.5f * (y * y - c.a * c.a)) : 1.0f;
  }
  if (p >= 1.0f) return 1.0f;
  return -expm1f(log1pf(-p) * rule.inverse_horizon);
}

// Returns whether the component was drawn anew; z is then the draw.
PYINV_HOST_DEVICE inline bool constrain(const StepRule& rule, const LaneStep& lane,
                                        uint32_t component, float& z) {
  const Constraint& c = rule.constraint;
  if (c.kind == ConstraintKind::none || !(fabsf(z) <= 3.402823466e38f)) return false;
  if (c.kind == ConstraintKind::clip) {
    z = fminf(fmaxf(z, c.low), c.high);
    return false;
  }
  if (c.kind == ConstraintKind::stochastic_clip) {
    if (z > c.low && z < c.high) return false;
    z = uniform_draw(draw_words(lane.key, DrawPurpose::resample, lane.update, component), c.low,
                     c.high);
    return true;
  }
  const float q = resampling_probability(rule, (z - rule.prior.mean) / rule.prior.std);
  if (!(q > 0.0f)) return false;
  const PhiloxWords words = draw_words(lane.key, DrawPurpose::resample, lane.update, component);
  if (q < 1.0f && decision_uniform(words) >= q) return false;
  z = normal_draw(words, rule.prior.mean, rule.prior.std);
  return true;
}

PYINV_HOST_DEVICE inline void step_component(const StepRule& rule, const LaneStep& lane,
                                             uint32_t component, float gradient, float& z, float& m,
                                             float& v, uint32_t& born) {
  float g = gradient + (lane.moment_shift + lane.moment_slope * (z - lane.moment_center)) +
            lane.prior_slope * (z - rule.prior.mean);
  if (rule.solver == SolverKind::adam) {
    m = rule.beta1 * m + rule.rest1 * g;
    v = rule.beta2 * v + rule.rest2 * (g * g);
    // A component drawn anew starts afresh: its bias corrections count its own updates.
    float step_size = lane.step_size, second_root = lane.second_root;
    if (born) {
      const float age = static_cast<float>(lane.stage_update - born);
      step_size = lane.learning_rate / -expm1f(age * rule.log_beta1);
      second_root = sqrtf(-expm1f(age * rule.log_beta2));
    }
    z -= step_size * m / (sqrtf(v) / second_root + rule.epsilon);
  } else {
    m = rule.momentum * m + g;
    z -= lane.learning_rate * m;
  }
  if (constrain(rule, lane, component, z) && rule.reset_moments) {
    m = v = 0.0f;
    born = lane.stage_update;
  }
}

}  // namespace pyinv
