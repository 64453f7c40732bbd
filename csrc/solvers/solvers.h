// The list of solvers. To add a solver, add a file in this folder, its kind in pyinv/recipe.h, its
// settings in rules.cpp, and an entry in this list.
#pragma once

#include "solvers/adam.h"
#include "solvers/gradient_descent.h"
#include "solvers/lbfgs.h"
#include "solvers/levenberg_marquardt.h"
#include "solvers/rmsprop.h"

namespace pyinv {

template <class... All>
struct SolverList {
  // Calls visit(solver) with the solver of this kind. Loops belong inside `visit`.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
  template <class Visit>
  PYINV_HOST_DEVICE static void visit(SolverKind kind, const Visit& visit) {
    ((All::kKind == kind ? visit(All()) : void()), ...);
  }

  // Calls visit(solver) with each solver in turn.
  template <class Visit>
  static void visit_all(const Visit& visit) {
    (visit(All()), ...);
  }
};

using Solvers = SolverList<GradientDescent, Adam, LevenbergMarquardt, Lbfgs, RmsProp>;

// Makes a component's step with the stage's solver.
PYINV_HOST_DEVICE inline void step_component(const StepRule& rule, const LaneStep& lane,
                                             uint32_t component, float gradient, float& z, float& m,
                                             float& v, uint32_t& reset_step) {
  const float g = penalised(rule, lane, gradient, z);
  Solvers::visit(rule.solver, [&](auto solver) {
    if constexpr (!solver.kMakesTrials) solver.move(rule, lane, g, z, m, v, reset_step);
  });
  constrain_step(rule, lane, component, z, m, v, reset_step);
}

}  // namespace pyinv
