// Adam (Kingma & Ba 2015, algorithm 1): m and v are the running means of the gradient and of its
// square. A component that is reset restarts: its bias corrections count its own steps.
#pragma once

#include <cmath>

#include "solvers/first_order.h"

namespace pyinv {

struct Adam : FirstOrderSolver {
  static constexpr SolverKind kKind = SolverKind::adam;
  static constexpr const char* kName = "adam";

  static void resolve(const Solver& settings, StepRule& rule) {
    rule.beta1 = static_cast<float>(settings.beta1);
    rule.beta2 = static_cast<float>(settings.beta2);
    rule.one_minus_beta1 = static_cast<float>(1.0 - settings.beta1);
    rule.one_minus_beta2 = static_cast<float>(1.0 - settings.beta2);
    rule.log_beta1 = static_cast<float>(std::log(settings.beta1));
    rule.log_beta2 = static_cast<float>(std::log(settings.beta2));
    rule.epsilon = static_cast<float>(settings.epsilon);
  }

  PYINV_HOST_DEVICE static void schedule(const Solver& settings, int64_t step_of_stage, double rate,
                                         LaneStep& step) {
    const double t = static_cast<double>(step_of_stage);
    step.step_size = static_cast<float>(rate / (1.0 - pow(settings.beta1, t)));
    step.second_root = static_cast<float>(sqrt(1.0 - pow(settings.beta2, t)));
  }

  PYINV_HOST_DEVICE static void move(const StepRule& rule, const LaneStep& lane, float g, float& z,
                                     float& m, float& v, uint32_t reset_step) {
    m = rule.beta1 * m + rule.one_minus_beta1 * g;
    v = rule.beta2 * v + rule.one_minus_beta2 * (g * g);
    float step_size = lane.step_size, second_root = lane.second_root;
    if (reset_step) {
      const float age = static_cast<float>(lane.stage_step - reset_step);
      step_size = lane.learning_rate / -expm1f(age * rule.log_beta1);
      second_root = sqrtf(-expm1f(age * rule.log_beta2));
    }
    z -= step_size * m / (sqrtf(v) / second_root + rule.epsilon);
  }
};

}  // namespace pyinv
