// RMSprop (Tieleman & Hinton 2012, lecture 6.5), as in torch.optim.RMSprop: v is the running mean
// of the squared gradient, which starts at 0 without bias correction; m is the momentum of the
// scaled gradients.
#pragma once

#include "solvers/first_order.h"

namespace pyinv {

struct RmsProp : FirstOrderSolver {
  static constexpr SolverKind kKind = SolverKind::rmsprop;
  static constexpr const char* kName = "rmsprop";

  // v decays as in Adam.
  static void resolve(const Solver& settings, StepRule& rule) {
    rule.momentum = static_cast<float>(settings.momentum);
    rule.beta2 = static_cast<float>(settings.alpha);
    rule.one_minus_beta2 = static_cast<float>(1.0 - settings.alpha);
    rule.epsilon = static_cast<float>(settings.epsilon);
  }

  PYINV_HOST_DEVICE static void move(const StepRule& rule, const LaneStep& lane, float g, float& z,
                                     float& m, float& v, uint32_t) {
    v = rule.beta2 * v + rule.one_minus_beta2 * (g * g);
    m = rule.momentum * m + g / (sqrtf(v) + rule.epsilon);
    z -= lane.learning_rate * m;
  }
};

}  // namespace pyinv
