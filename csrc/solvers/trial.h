// The common part of solvers that make trial steps. From an accepted latent, trial steps are
// evaluated with the stage's objective until one is accepted; its latent is the next accepted one.
// Under a clip, a component at a bound that would move beyond it is held.
//
// Such a solver is a struct with
//
//   State                                the solver's state of a lane, in LaneState::solver
//   take_in(rule, stage, loss, finite, trace, lane)
//                                        accepts or rejects the evaluated latent; `finite`: whether
//                                        all results other than the loss are finite
//   storage(settings)                    the solver's arrays, with kAcceptedVectors first
//   workers(latent_size)                 the most workers that a team may have
//   scratch(latent_size, near_bytes)     a team's scratch memory
//   propose(team, lanes, lane, near, far)
//                                        saves a newly accepted latent, and replaces it with the
//                                        next trial
//   problem(settings, latent_size)       an error message for invalid settings, or empty
#pragma once

#include <cmath>
#include <cstddef>
#include <string>

#include "lane_rule.h"
#include "solvers/team.h"

namespace pyinv {

// Scratch doubles that a team needs. On a GPU, near memory is the block's shared memory, at most
// `near_bytes`, and far memory is global memory.
struct Scratch {
  int64_t near = 0, far = 0;
};

constexpr int64_t kAcceptedLatent = 0, kAcceptedGradient = 1;

struct TrialSolver {
  static constexpr bool kMakesTrials = true;
  static constexpr bool kSolvesNormalEquations = false;
  // The accepted latent and its gradient are a lane's first vectors with every solver.
  static constexpr int64_t kAcceptedVectors = 2;
};

// Prepares the lane's next trial, which propose() counts.
PYINV_HOST_DEVICE inline void plan_trial(const RunRule& rule, const StageRule& stage,
                                         LaneState& lane) {
  if (lane.action & kAccept) {
    lane.trial.former_slope = lane.trial.prior_slope;
    lane.trial.prior_slope = prior_slope(rule, stage, lane.previous_loss, lane);
  }
  name_step(rule, lane);
}

// A lane's accepted latent, its gradient and the penalty there.
struct Accepted {
  float *latent, *gradient;
  int64_t size;
  double center, slope;
  float low, high;  // a component at a bound that would move beyond it is held

  // The negative gradient of the loss with its penalty.
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
  const bool bounded = constraint.kind == ConstraintKind::clip;
  return {.latent = solver_vector(lanes, kAcceptedLatent, lane),
          .gradient = solver_vector(lanes, kAcceptedGradient, lane),
          .size = lanes.latent_size,
          .center = lanes.rule->prior.mean,
          .slope = state.trial.prior_slope,
          .low = bounded ? constraint.low : -INFINITY,
          .high = bounded ? constraint.high : INFINITY};
}

PYINV_HOST_DEVICE inline bool is_positive(double value) {
  return value > 0.0 && value <= 1.7976931348623157e308;
}

// The decrease of the loss with its penalty over the trial step.
PYINV_HOST_DEVICE inline double trial_fall(float loss, const LaneState& lane) {
  return double{lane.previous_loss} - loss + lane.trial.penalty_fall;
}

// Rejects the trial. Another follows, or the stage ends at the last accepted latent.
PYINV_HOST_DEVICE inline void reject(const RunRule& rule, const StageRule& stage, bool hopeless,
                                     float* trace, LaneState& lane) {
  lane.stop = kNoStop;
  lane.finite = true;
  trace_loss(rule, lane.previous_loss, trace, lane);
  if (hopeless) {
    lane.stop = static_cast<uint8_t>(Status::converged_plateau);
  } else {
    limit_steps(stage, lane);
  }
  lane.action = lane.stop == kNoStop ? kPropose : kReturn;
}

// The evaluated latent and its gradient become the accepted ones.
template <class Team>
PYINV_DEVICE void accept(const Team& team, const LaneArrays& lanes, int64_t lane,
                         const Accepted& accepted) {
  const int64_t first = lane * lanes.latent_size;
  const float *latent = lanes.latent + first, *gradient = lanes.gradient + first;
  float* attempt = lanes.attempt_latent + first;
  const bool record = lanes.state[lane].action & kRecord;
  team.for_each(accepted.size, [=](int64_t i) {
    if (record) attempt[i] = latent[i];
    accepted.latent[i] = latent[i];
    accepted.gradient[i] = gradient[i];
  });
}

// Writes the constrained trial, `scale` times `step` away, to `latent`; false if it overflows a
// float.
template <class Team>
PYINV_DEVICE bool try_step(const Team& team, const StageRule& stage, const LaneStep& lane,
                           const Accepted& accepted, double scale, const double* step,
                           float* latent) {
  bool finite = true;
  team.for_each(accepted.size, [&](int64_t i) {
    const double moved = accepted.latent[i] + scale * step[i];
    if (!(fabs(moved) <= 3.402823466e38)) {
      finite = false;
      return;
    }
    latent[i] = static_cast<float>(moved);
    constrain(stage.step, lane, static_cast<uint32_t>(i), latent[i]);
  });
  return team.all(finite);
}

template <class Team>
PYINV_DEVICE void return_to(const Team& team, const Accepted& accepted, float* latent) {
  team.for_each(accepted.size, [=](int64_t i) { latent[i] = accepted.latent[i]; });
}

// A component's contribution to the penalty's decrease over the trial's actual step.
PYINV_HOST_DEVICE inline double penalty_fall(const Accepted& accepted, int64_t i, double step) {
  return -accepted.slope * step * ((accepted.latent[i] - accepted.center) + 0.5 * step);
}

// Finishes a trial. If none was found, the stage ends at the last accepted latent.
PYINV_HOST_DEVICE inline void end_trial(const RunRule& rule, bool found, double predicted,
                                        double penalty_falls, LaneState& lane) {
  lane.action = 0;
  if (found) {
    lane.trial.predicted = predicted;
    lane.trial.penalty_fall = penalty_falls;
    lane.trial.pending = true;
    count_step(lane);
  } else {
    lane.stop = static_cast<uint8_t>(Status::converged_plateau);
    follow_stop(rule, lane);
  }
}

}  // namespace pyinv
