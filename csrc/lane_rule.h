// The rules common to all solvers: attempts, stages, restarts and stop rules. The loops over lanes
// are in kernels/, so that every device runs the same rules.
#pragma once

#include <cmath>

#include "lanes.h"

namespace pyinv {

// Whether a result is better: converged comes first, then the lower rank; NaN is the worst.
PYINV_HOST_DEVICE inline bool better(uint8_t status, double rank, uint8_t than, double than_rank) {
  const bool converged = status == static_cast<uint8_t>(Status::converged_tolerance);
  if (converged != (than == static_cast<uint8_t>(Status::converged_tolerance))) return converged;
  return than_rank != than_rank ? rank == rank : rank < than_rank;
}

// The value that attempts are compared by, which is what the last stage minimises. A relative
// penalty, whose gradient has the loss as a factor, is a penalty on the loss's logarithm. At a loss
// of 0 or below it has no effect; those rank below the logarithm of any float.
PYINV_HOST_DEVICE inline double rank_of(const RunRule& rule, float loss, const Moments& moments) {
  if (!(rule.rank_weight > 0.0f)) return loss;
  const double away = moments.mean - rule.prior_moments.mean;
  const double penalty = 0.5 * rule.rank_weight * (away * away + moments.std * moments.std) /
                         (rule.prior_moments.std * rule.prior_moments.std);
  if (!rule.rank_relative) return loss + penalty;
  return loss > 0.0f ? log(static_cast<double>(loss)) + penalty : loss - 1e3;
}

// Whether an evaluated lane needs its latent's moments.
PYINV_HOST_DEVICE inline bool needs_moments(const RunRule& rule, const StageRule& stage) {
  return stage.penalties.moments == MomentScope::latent || rule.rank_weight > 0.0f;
}

PYINV_HOST_DEVICE inline bool solves_normal_equations(const StageRule& stage) {
  return stage.normal_equations >= 0;
}

// The objective that a stage evaluates first.
PYINV_HOST_DEVICE inline int32_t first_objective(const StageRule& stage) {
  return solves_normal_equations(stage) ? stage.normal_equations : stage.objective;
}

PYINV_HOST_DEVICE inline int32_t wanted_objective(const StageRule* stages, const LaneState& lane) {
  const StageRule& stage = stages[lane.stage];
  return lane.trial.pending ? stage.objective : first_objective(stage);
}

// Whether a lane is active: its target is not done and the lane has the objective that it needs.
PYINV_HOST_DEVICE inline bool at_work(const StageRule* stages, const LaneState& lane) {
  return !lane.done && wanted_objective(stages, lane) == lane.objective;
}

// Whether the lane evaluates normal equations.
PYINV_HOST_DEVICE inline bool at_normal_equations(const StageRule& stage, const LaneState& lane) {
  return solves_normal_equations(stage) && !lane.trial.pending;
}

// A component of a target's first latent.
PYINV_HOST_DEVICE inline float first_latent(const RunRule& rule, uint64_t id, uint32_t component) {
  if (rule.start == Start::mean) return static_cast<float>(rule.prior_moments.mean);
  return initial_draw(rule.prior, {rule.seed, id, 0}, component);
}

// Whether a restart starts near the best latent so far, which must have a finite loss.
PYINV_HOST_DEVICE inline bool hops(const RunRule& rule, const LaneState& lane) {
  return rule.hop > 0.0f && lane.best_loss == lane.best_loss;
}

// A component of a restart's first latent. As a proposal for draws from a normal prior it would
// preserve their distribution (Neal 1998; Cotter et al. 2013).
PYINV_HOST_DEVICE inline float hop_from(const RunRule& rule, float best, float draw) {
  const float mean = static_cast<float>(rule.prior_moments.mean);
  return mean + (rule.stay * (best - mean) + rule.hop * (draw - mean));
}

// A component of a stage's first latent. Trials stay within a clip's bounds; a trial from outside
// the bounds would be judged by its move back to them.
PYINV_HOST_DEVICE inline float within_bounds(const StageRule& stage, float z) {
  const Constraint& constraint = stage.step.constraint;
  if (!stage.makes_trials || constraint.kind != ConstraintKind::clip) return z;
  return fminf(fmaxf(z, constraint.low), constraint.high);
}

PYINV_HOST_DEVICE inline void begin_stage(LaneState& lane, int32_t stage) {
  lane.stage = stage;
  lane.stage_steps = 0;
  lane.unchanged = 0;
  lane.previous_loss = lane.attempt_loss = lane.earlier_loss = NAN;
  lane.attempt_rank = NAN;
  lane.met = kNoStop;
  lane.trial.pending = false;
  lane.action |= kBegin;
}

PYINV_HOST_DEVICE inline void begin_attempt(LaneState& lane, int32_t attempt, int32_t stage) {
  lane.attempt = attempt;
  lane.attempt_steps = 0;
  lane.over = false;
  begin_stage(lane, stage);
}

// Starts another attempt. A hop skips all stages but the last.
PYINV_HOST_DEVICE inline void restart(const RunRule& rule, LaneState& lane) {
  begin_attempt(lane, lane.attempt + 1, rule.hop > 0.0f ? rule.stages - 1 : 0);
  lane.action |= kDraw;
}

PYINV_HOST_DEVICE inline LaneState begin_target(uint64_t id, int64_t row, int32_t objective) {
  LaneState lane{};
  lane.id = id;
  lane.row = row;
  lane.objective = objective;
  lane.best_loss = lane.nearest = NAN;
  lane.best_rank = NAN;
  lane.best_status = static_cast<uint8_t>(Status::cancelled);
  begin_attempt(lane, 0, 0);
  lane.action = 0;
  return lane;
}

PYINV_HOST_DEVICE inline bool ends_attempt(const RunRule& rule, const LaneState& lane,
                                           uint8_t stop) {
  return stop == static_cast<uint8_t>(Status::converged_tolerance) ||
         stop == static_cast<uint8_t>(Status::non_finite) || lane.stage + 1 == rule.stages;
}

PYINV_HOST_DEVICE inline bool restarts(const RunRule& rule, const LaneState& lane) {
  return lane.best_status != static_cast<uint8_t>(Status::converged_tolerance) &&
         lane.attempt < rule.restarts + lane.uncounted;
}

PYINV_HOST_DEVICE inline void end_attempt(LaneState& lane, uint8_t status) {
  if (lane.over) return;
  lane.over = true;
  if (lane.attempts == 0 || better(status, lane.attempt_rank, lane.best_status, lane.best_rank)) {
    lane.best_status = status;
    lane.best_loss = lane.attempt_loss;
    lane.best_rank = lane.attempt_rank;
    lane.action |= kKeep;
  }
  lane.attempts = lane.attempt + 1;
}

// Records the error of the evaluated latent, its mean squared difference from the true latent.
PYINV_HOST_DEVICE inline void update_nearest(double error, LaneState& lane) {
  if (!(error <= 3.402823466e38)) return;
  const float rounded = static_cast<float>(error);
  if (!(lane.nearest <= rounded)) lane.nearest = rounded;
}

PYINV_HOST_DEVICE inline void trace_loss(const RunRule& rule, float loss, float* trace,
                                         const LaneState& lane) {
  if (trace && lane.attempt_steps % rule.trace_every == 0) {
    trace[lane.attempt_steps / rule.trace_every] = loss;
  }
}

// Ends the stage after its last step, with a status that says whether the loss was still falling.
PYINV_HOST_DEVICE inline void limit_steps(const StageRule& stage, LaneState& lane) {
  const int64_t tenth = (stage.max_steps + 9) / 10;
  if (lane.stage_steps == stage.max_steps - tenth) lane.earlier_loss = lane.attempt_loss;
  if (lane.stage_steps < stage.max_steps) return;
  const double before = lane.earlier_loss, fall = before - lane.attempt_loss;
  lane.stop = static_cast<uint8_t>(fall > 0.01 * fabs(before) ? Status::step_limit_improving
                                                              : Status::step_limit);
}

// Records an evaluation and sets the stop rule that it meets. The lane's moments must be set where
// needs_moments() is true. `trace` is the lane's, or null.
PYINV_HOST_DEVICE inline void update_status(const RunRule& rule, const StageRule& stage, float loss,
                                            bool finite, float* trace, LaneState& lane) {
  lane.action = 0;
  lane.stop = kNoStop;
  lane.finite = finite && fabsf(loss) <= 3.402823466e38f;
  trace_loss(rule, loss, trace, lane);
  if (!lane.finite) {
    lane.stop = static_cast<uint8_t>(Status::non_finite);
    return;
  }
  const bool first = lane.attempt_loss != lane.attempt_loss;
  if (!rule.keep_best || first || loss < lane.attempt_loss) {
    lane.attempt_loss = loss;
    lane.attempt_rank = rank_of(rule, loss, lane.moments);
    lane.action = kRecord;
  }
  if (stage.loss_tolerance > 0 && loss >= 0.0f && loss <= stage.loss_tolerance) {
    lane.stop = static_cast<uint8_t>(Status::converged_tolerance);
    return;
  }
  if (lane.stage_steps > 0) {
    const double previous = lane.previous_loss;
    const double change = fabs(loss - previous);
    const bool unchanged = (stage.change_tolerance > 0 && change <= stage.change_tolerance) ||
                           (stage.relative_change_tolerance > 0 &&
                            change <= stage.relative_change_tolerance * fabs(previous));
    lane.unchanged = unchanged ? lane.unchanged + 1 : 0;
    if (unchanged && lane.unchanged >= stage.patience) {
      lane.stop = static_cast<uint8_t>(Status::converged_plateau);
      return;
    }
  }
  lane.previous_loss = loss;
  limit_steps(stage, lane);
}

// The factor of the prior penalty at a latent with this loss.
PYINV_HOST_DEVICE inline double prior_slope(const RunRule& rule, const StageRule& stage, float loss,
                                            const LaneState& lane) {
  const Penalties& penalty = stage.penalties;
  if (!(penalty.prior_weight > 0.0f)) return 0.0;
  const double left = static_cast<double>(lane.stage_steps) / static_cast<double>(stage.max_steps);
  return double{penalty.prior_weight} * (penalty.anneal_prior ? 1.0 - left : 1.0) *
         (penalty.relative_prior ? fmax(double{loss}, 0.0) : 1.0) /
         (double{rule.prior.std} * rule.prior.std * static_cast<double>(rule.latent_size));
}

// Sets the counters that the random draws of the lane's next step depend on.
PYINV_HOST_DEVICE inline void name_step(const RunRule& rule, LaneState& lane) {
  lane.step.key = {rule.seed, lane.id, static_cast<uint32_t>(lane.attempt)};
  lane.step.attempt_step = static_cast<uint32_t>(lane.attempt_steps + 1);
  lane.step.stage_step = static_cast<uint32_t>(lane.stage_steps + 1);
}

PYINV_HOST_DEVICE inline void count_step(LaneState& lane) {
  ++lane.stage_steps;
  ++lane.attempt_steps;
  ++lane.total_steps;
}

// Advances an independent lane that met a stop rule.
PYINV_HOST_DEVICE inline void follow_stop(const RunRule& rule, LaneState& lane) {
  if (!ends_attempt(rule, lane, lane.stop)) {
    begin_stage(lane, lane.stage + 1);
    return;
  }
  end_attempt(lane, lane.stop);
  // The loss has no slope at the mean, for example because all first activations are zero.
  if (rule.start == Start::mean && lane.attempt == 0 && lane.attempt_steps == 0 &&
      lane.stop == static_cast<uint8_t>(Status::converged_plateau)) {
    lane.uncounted = 1;
  }
  if (restarts(rule, lane)) {
    restart(rule, lane);
  } else {
    lane.done = true;
  }
}

// The losses of a group's lanes depend on each other, so the lanes start and end every stage
// together. Their next action depends on three properties of every evaluated lane:
struct GroupVotes {
  bool all_met;   // every lane met a stop rule in this stage
  bool any_left;  // a lane has more stages in its attempt
  bool any_retry;

  PYINV_HOST_DEVICE void join(const GroupVotes& other) {
    all_met = all_met && other.all_met;
    any_left = any_left || other.any_left;
    any_retry = any_retry || other.any_retry;
  }
};

PYINV_HOST_DEVICE inline GroupVotes vote(const RunRule& rule, LaneState& lane) {
  // If a lane has met several rules, convergence takes precedence.
  if (lane.stop == static_cast<uint8_t>(Status::converged_tolerance) || lane.met == kNoStop) {
    lane.met = lane.stop;
  }
  if (lane.met == kNoStop) return {false, false, false};
  // The lane's state if the attempt ended now.
  LaneState ended = lane;
  end_attempt(ended, lane.met);
  return {true, !lane.over && !ends_attempt(rule, lane, lane.met), restarts(rule, ended)};
}

// Advances a lane of a group whose lanes have all met a stop rule.
PYINV_HOST_DEVICE inline void follow_votes(const RunRule& rule, const GroupVotes& votes,
                                           LaneState& lane) {
  if (lane.stage + 1 < rule.stages && votes.any_left) {
    if (ends_attempt(rule, lane, lane.met)) end_attempt(lane, lane.met);
    begin_stage(lane, lane.stage + 1);
    return;
  }
  end_attempt(lane, lane.met);
  if (votes.any_retry) {
    restart(rule, lane);
  } else {
    lane.done = true;
  }
}

// Ends the lane's attempt, because the run ends before its target is finished.
PYINV_HOST_DEVICE inline void abandon(LaneState& lane) {
  lane.action = 0;
  if (lane.done) return;
  end_attempt(lane, static_cast<uint8_t>(Status::cancelled));
  lane.best_status = static_cast<uint8_t>(Status::cancelled);
  lane.done = true;
}

PYINV_HOST_DEVICE inline LaneReport report(const StageRule* stages, const LaneState& lane,
                                           float loss) {
  // The loss of a pending trial is not yet the lane's loss.
  const bool accepted = stages[lane.stage].makes_trials && lane.previous_loss == lane.previous_loss;
  return {lane.row,
          lane.total_steps,
          lane.normal_equations,
          accepted ? lane.previous_loss : loss,
          lane.best_loss,
          lane.nearest,
          lane.attempts,
          wanted_objective(stages, lane),
          lane.best_status,
          lane.done};
}

}  // namespace pyinv
