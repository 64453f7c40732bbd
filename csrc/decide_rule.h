// Decides the next action of an evaluated lane: its solver processes the evaluation, and the lane
// makes a step, starts a stage or an attempt, or is done. The loops over lanes are in kernels/, so
// that every device runs the same rules.
#pragma once

#include "lane_rule.h"
#include "solvers/solvers.h"

namespace pyinv {

// Processes an evaluation with the lane's solver. `finite`: whether all results other than the loss
// are finite. The lane's moments must be set where needs_moments() is true. `trace` is the lane's,
// or null.
PYINV_HOST_DEVICE inline void take_in(const RunRule& rule, const StageRule& stage, float loss,
                                      bool finite, float* trace, LaneState& lane) {
  Solvers::visit(stage.solver.kind,
                 [&](auto solver) { solver.take_in(rule, stage, loss, finite, trace, lane); });
}

PYINV_HOST_DEVICE inline void plan(const RunRule& rule, const StageRule& stage,
                                   const Moments& moments, float loss, LaneState& lane) {
  Solvers::visit(stage.solver.kind, [&](auto solver) {
    using ThisSolver = decltype(solver);
    if constexpr (ThisSolver::kMakesTrials) {
      plan_trial(rule, stage, lane);
    } else {
      plan_step<ThisSolver>(rule, stage, moments, loss, lane);
    }
  });
}

// Decides the next action of an evaluated lane that does not depend on others.
PYINV_HOST_DEVICE inline void decide(const RunRule& rule, const StageRule& stage, float loss,
                                     LaneState& lane) {
  if (lane.stop == kNoStop) {
    plan(rule, stage, lane.moments, loss, lane);
  } else {
    follow_stop(rule, lane);
  }
}

PYINV_HOST_DEVICE inline void decide_in_group(const RunRule& rule, const StageRule& stage,
                                              const GroupVotes& votes, const Moments& batch,
                                              float loss, LaneState& lane) {
  if (!votes.all_met) {
    if (!lane.finite) return;
    const bool over_batch = stage.penalties.moments == MomentScope::batch;
    plan(rule, stage, over_batch ? batch : lane.moments, loss, lane);
  } else {
    follow_votes(rule, votes, lane);
  }
}

}  // namespace pyinv
