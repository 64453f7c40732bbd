// Gradient descent, with heavy-ball momentum m as in torch.optim.SGD.
#pragma once

#include "solvers/first_order.h"

namespace pyinv {

struct GradientDescent : FirstOrderSolver {
  static constexpr SolverKind kKind = SolverKind::gradient_descent;
  static constexpr const char* kName = "gradient_descent";

  static void resolve(const Solver& settings, StepRule& rule) {
    rule.momentum = static_cast<float>(settings.momentum);
  }

  PYINV_HOST_DEVICE static void move(const StepRule& rule, const LaneStep& lane, float g, float& z,
                                     float& m, float&, uint32_t) {
    m = rule.momentum * m + g;
    z -= lane.learning_rate * m;
  }
};

}  // namespace pyinv
