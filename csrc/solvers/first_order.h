// The common part of first-order solvers, which step each component independently: the gradient
// with penalties, the constraint after the step, and the reset of a component's state. The loops
// over components are in kernels/, so that every device runs the same arithmetic: float32, one
// rounding per operation, in the order written.
//
// Such a solver is a struct with
//
//   resolve(settings, step_rule)   converts the settings to float32, once per run
//   schedule(settings, t, rate, step)
//                                  values shared by all components in the stage's t-th step
//   move(rule, step, g, z, m, v, reset_step)
//                                  one component's step. m and v are the component's state, 0 at
//                                  the start of every stage. reset_step: the stage's step that
//                                  last reset them, 0 for none
#pragma once

#include <string>

#include "lane_rule.h"

namespace pyinv {

struct FirstOrderSolver {
  static constexpr bool kMakesTrials = false;
  static constexpr bool kSolvesNormalEquations = false;

  static std::string problem(const Solver&, int64_t) { return {}; }
  static Storage storage(const Solver&) { return {.vectors = 2, .count_vectors = 1}; }
  PYINV_HOST_DEVICE static void schedule(const Solver&, int64_t, double, LaneStep&) {}

  PYINV_HOST_DEVICE static void take_in(const RunRule& rule, const StageRule& stage, float loss,
                                        bool finite, float* trace, LaneState& lane) {
    update_status(rule, stage, loss, finite, trace, lane);
  }
};

// Pointers to m, v and reset_step from one component on.
struct FirstOrderRows {
  float *m, *v;
  uint32_t* reset_step;
};

PYINV_HOST_DEVICE inline FirstOrderRows first_order_rows(const LaneArrays& lanes,
                                                         int64_t component) {
  return {lanes.vectors + component, lanes.vectors + lanes.lanes * lanes.latent_size + component,
          lanes.count_vectors + component};
}

PYINV_HOST_DEVICE inline double learning_rate(const Solver& solver, int64_t k, int64_t max_steps) {
  const Schedule& schedule = solver.schedule;
  if (schedule.kind == ScheduleKind::step_decay) {
    return solver.learning_rate * pow(schedule.factor, static_cast<double>(k / schedule.every));
  }
  if (schedule.kind == ScheduleKind::cosine) {
    const double progress = static_cast<double>(k) / static_cast<double>(max_steps);
    const double falling = 0.5 * (1.0 + cos(3.141592653589793 * progress));
    return solver.learning_rate * (schedule.final + (1.0 - schedule.final) * falling);
  }
  return solver.learning_rate;
}

// Prepares the lane's next step. `loss` is the loss at its latent.
template <class FirstOrder>
PYINV_HOST_DEVICE void plan_step(const RunRule& rule, const StageRule& stage,
                                 const Moments& moments, float loss, LaneState& lane) {
  const double d = static_cast<double>(rule.latent_size);
  LaneStep& step = lane.step;
  name_step(rule, lane);
  const double rate = learning_rate(stage.solver, lane.stage_steps, stage.max_steps);
  step.learning_rate = static_cast<float>(rate);
  FirstOrder::schedule(stage.solver, lane.stage_steps + 1, rate, step);
  step.moment_center = step.moment_shift = step.moment_slope = 0.0f;
  const Penalties& penalty = stage.penalties;
  if (penalty.moments != MomentScope::none) {
    const Moments& wanted = rule.prior_moments;
    step.moment_center = static_cast<float>(moments.mean);
    step.moment_shift =
        static_cast<float>(2.0 * penalty.gamma_mean * (moments.mean - wanted.mean) / d);
    if (moments.std > 0.0) {
      step.moment_slope = static_cast<float>(2.0 * penalty.gamma_std * (moments.std - wanted.std) /
                                             (d * moments.std));
    }
  }
  step.prior_slope = static_cast<float>(prior_slope(rule, stage, loss, lane));
  count_step(lane);
  lane.action |= kStep;
}

// The gradient of the loss with its penalties.
PYINV_HOST_DEVICE inline float penalised(const StepRule& rule, const LaneStep& lane, float gradient,
                                         float z) {
  return gradient + (lane.moment_shift + lane.moment_slope * (z - lane.moment_center)) +
         lane.prior_slope * (z - rule.prior.mean);
}

// Applies the constraint after a component's step.
PYINV_HOST_DEVICE inline void constrain_step(const StepRule& rule, const LaneStep& lane,
                                             uint32_t component, float& z, float& m, float& v,
                                             uint32_t& reset_step) {
  if (constrain(rule, lane, component, z) && rule.reset_moments) {
    m = v = 0.0f;
    reset_step = lane.stage_step;
  }
}

}  // namespace pyinv
