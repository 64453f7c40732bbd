// What becomes of a lane after an evaluation: which stop rule it meets, and what follows. The rule,
// apart from the loops over lanes (kernels/), so that every device runs the same.
#pragma once

#include <cmath>

#include "lanes.h"

namespace pyinv {

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

// Of Levenberg and Marquardt's parameter, in units of the gram's mean diagonal. A step beyond the
// last one is so short that, once rejected, none is worth another evaluation.
constexpr double kLeastDamping = 1e-8, kMostDamping = 1e8, kHopelessDamping = 1e5;

// Converged first, then the lower rank; NaN is the worst.
PYINV_HOST_DEVICE inline bool better(uint8_t status, double rank, uint8_t than, double than_rank) {
  const bool converged = status == static_cast<uint8_t>(Status::converged);
  if (converged != (than == static_cast<uint8_t>(Status::converged))) return converged;
  return than_rank != than_rank ? rank == rank : rank < than_rank;
}

// What attempts are compared by: what the last stage minimises. A relative penalty, whose gradient
// has the loss as a factor, is one of the loss's logarithm.
PYINV_HOST_DEVICE inline double rank_of(const RunRule& rule, float loss, const Moments& moments) {
  if (!(rule.rank_weight > 0.0f)) return loss;
  const double away = moments.mean - rule.prior_moments.mean;
  const double penalty = 0.5 * rule.rank_weight * (away * away + moments.std * moments.std) /
                         (rule.prior_moments.std * rule.prior_moments.std);
  if (!rule.rank_relative) return loss + penalty;
  return loss > 0.0f ? log(static_cast<double>(loss)) + penalty : -INFINITY;
}

// Whether an observed lane has to know its latent's moments.
PYINV_HOST_DEVICE inline bool wants_moments(const RunRule& rule, const StageRule& stage) {
  return stage.penalties.moments == MomentScope::latent || rule.rank_weight > 0.0f;
}

// Of Nocedal and Wright's algorithm 3.1: the share of a step's promise that its fall has to keep,
// and what a rejected one is cut to.
constexpr double kEnoughFall = 1e-4, kCut = 0.3;
// Cut by more than a million, a step of float32 hardly is one.
constexpr int32_t kMostRejected = 12;

PYINV_HOST_DEVICE inline bool solves(const StageRule& stage) { return stage.normal_equations >= 0; }

PYINV_HOST_DEVICE inline bool searches(const StageRule& stage) {
  return stage.solver.kind == SolverKind::lbfgs;
}

PYINV_HOST_DEVICE inline bool makes_trials(const StageRule& stage) {
  return solves(stage) || searches(stage);
}

// What a stage evaluates first.
PYINV_HOST_DEVICE inline int32_t first_objective(const StageRule& stage) {
  return solves(stage) ? stage.normal_equations : stage.objective;
}

PYINV_HOST_DEVICE inline int32_t wanted_objective(const StageRule* stages, const LaneState& lane) {
  const StageRule& stage = stages[lane.stage];
  return lane.trust.trial ? stage.objective : first_objective(stage);
}

// A lane is at work unless its target is done or it wants another objective than it gets.
PYINV_HOST_DEVICE inline bool at_work(const StageRule* stages, const LaneState& lane) {
  return !lane.done && wanted_objective(stages, lane) == lane.objective;
}

// Whether what is evaluated are normal equations.
PYINV_HOST_DEVICE inline bool at_normal_equations(const StageRule& stage, const LaneState& lane) {
  return solves(stage) && !lane.trust.trial;
}

// A component of a target's first latent.
PYINV_HOST_DEVICE inline float first_latent(const RunRule& rule, uint64_t id, uint32_t component) {
  if (rule.start == Start::mean) return static_cast<float>(rule.prior_moments.mean);
  return initial_draw(rule.prior, {rule.seed, id, 0}, component);
}

// Whether a restart begins near the best latent so far. One whose loss was never finite says
// nothing.
PYINV_HOST_DEVICE inline bool hops(const RunRule& rule, const LaneState& lane) {
  return rule.hop > 0.0f && lane.best_loss == lane.best_loss;
}

// A component of a restart's first latent. As a proposal for draws of a normal prior it would keep
// their distribution (Neal 1998; Cotter et al. 2013).
PYINV_HOST_DEVICE inline float hop_from(const RunRule& rule, float best, float draw) {
  const float mean = static_cast<float>(rule.prior_moments.mean);
  return mean + (rule.stay * (best - mean) + rule.hop * (draw - mean));
}

// A component of a latent that a stage begins with. Trials do not leave a clip's bounds, and one
// that had to return from beyond them would be judged by its return.
PYINV_HOST_DEVICE inline float within_bounds(const StageRule& stage, float z) {
  const Constraint& constraint = stage.step.constraint;
  if (!makes_trials(stage) || constraint.kind != ConstraintKind::clip) return z;
  return fminf(fmaxf(z, constraint.low), constraint.high);
}

PYINV_HOST_DEVICE inline void forget_pairs(Search& search) {
  search.pairs = 0;
  search.length = 1.0;
  search.rejected = 0;
}

PYINV_HOST_DEVICE inline void begin_stage(LaneState& lane, int32_t stage) {
  lane.stage = stage;
  lane.stage_steps = 0;
  lane.unchanged = 0;
  lane.previous_loss = lane.recorded_loss = NAN;
  lane.recorded_rank = NAN;
  lane.met = kNoStop;
  lane.trust.trial = false;
  forget_pairs(lane.search);
  lane.action |= kClearMoments;
}

PYINV_HOST_DEVICE inline void begin_attempt(LaneState& lane, int32_t attempt, int32_t stage) {
  lane.attempt = attempt;
  lane.attempt_steps = 0;
  lane.over = false;
  begin_stage(lane, stage);
}

// A further attempt. Hops leave out the stages that look for where to begin.
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
  return stop == static_cast<uint8_t>(Status::converged) ||
         stop == static_cast<uint8_t>(Status::non_finite) || lane.stage + 1 == rule.stages;
}

PYINV_HOST_DEVICE inline bool restarts(const RunRule& rule, const LaneState& lane) {
  return lane.best_status != static_cast<uint8_t>(Status::converged) &&
         lane.attempt < rule.restarts;
}

PYINV_HOST_DEVICE inline void end_attempt(LaneState& lane, uint8_t status) {
  if (lane.over) return;
  lane.over = true;
  if (lane.attempts == 0 || better(status, lane.recorded_rank, lane.best_status, lane.best_rank)) {
    lane.best_status = status;
    lane.best_loss = lane.recorded_loss;
    lane.best_rank = lane.recorded_rank;
    lane.action |= kKeep;
  }
  lane.attempts = lane.attempt + 1;
}

// Takes in the error of the latent that was evaluated, its mean squared difference from the truth.
PYINV_HOST_DEVICE inline void observe_error(double error, LaneState& lane) {
  if (!(error <= 3.402823466e38)) return;
  const float rounded = static_cast<float>(error);
  if (!(lane.nearest <= rounded)) lane.nearest = rounded;
}

// Takes in an evaluation: records it and says which stop rule it meets. The lane knows its latent's
// moments, where they are wanted. `trace` is the lane's, or null.
PYINV_HOST_DEVICE inline void observe(const RunRule& rule, const StageRule& stage, float loss,
                                      bool finite, float* trace, LaneState& lane) {
  lane.action = 0;
  lane.stop = kNoStop;
  lane.finite = finite && fabsf(loss) <= 3.402823466e38f;
  if (trace && lane.attempt_steps % rule.trace_every == 0) {
    trace[lane.attempt_steps / rule.trace_every] = loss;
  }
  if (!lane.finite) {
    lane.stop = static_cast<uint8_t>(Status::non_finite);
    return;
  }
  const bool first = lane.recorded_loss != lane.recorded_loss;
  if (!rule.keep_best || first || loss < lane.recorded_loss) {
    lane.recorded_loss = loss;
    lane.recorded_rank = rank_of(rule, loss, lane.moments);
    lane.action = kRecord;
  }
  if (stage.loss_tolerance > 0 && loss <= stage.loss_tolerance) {
    lane.stop = static_cast<uint8_t>(Status::converged);
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
      lane.stop = static_cast<uint8_t>(Status::stalled);
      return;
    }
  }
  lane.previous_loss = loss;
  if (lane.stage_steps == stage.max_steps) lane.stop = static_cast<uint8_t>(Status::step_limit);
}

// The trial is not taken; another follows, or the stage ends where it was accepted last.
PYINV_HOST_DEVICE inline void reject(const RunRule& rule, const StageRule& stage, bool hopeless,
                                     float* trace, LaneState& lane) {
  lane.stop = kNoStop;
  lane.finite = true;
  if (trace && lane.attempt_steps % rule.trace_every == 0) {
    trace[lane.attempt_steps / rule.trace_every] = lane.previous_loss;
  }
  if (hopeless) {
    lane.stop = static_cast<uint8_t>(Status::stalled);
  } else if (lane.stage_steps == stage.max_steps) {
    lane.stop = static_cast<uint8_t>(Status::step_limit);
  }
  lane.action = lane.stop == kNoStop ? kSolve : kReturn;
}

// Takes in an evaluation of a lane that solves normal equations. `finite`: gradient and gram, where
// those are the equations; of a trial the loss counts alone.
PYINV_HOST_DEVICE inline void observe_solving(const RunRule& rule, const StageRule& stage,
                                              float loss, bool finite, float* trace,
                                              LaneState& lane) {
  Trust& trust = lane.trust;
  const double accepted_loss = lane.previous_loss;
  if (!trust.trial) {
    ++trust.normal_equations;
    if (accepted_loss != accepted_loss) {
      trust.damping = stage.solver.damping;
      observe(rule, stage, loss, finite, trace, lane);
    } else {
      // The latent is known: as a trial it was accepted, and its loss, from the same function that
      // the next trial's comes from, stays.
      lane.action = 0;
      lane.finite = finite && fabsf(loss) <= 3.402823466e38f;
      lane.stop = lane.finite ? kNoStop : static_cast<uint8_t>(Status::non_finite);
    }
    if (lane.stop == kNoStop) lane.action |= kAccept | kSolve;
    return;
  }
  const double fall = accepted_loss - loss + trust.penalty_fall;
  // Not so for a loss that is not finite.
  if (fabsf(loss) <= 3.402823466e38f && fall > 0.0 && fall > 1e-3 * trust.predicted) {
    if (fall > 0.75 * trust.predicted) {
      trust.damping *= stage.solver.damping_down;
    } else if (fall < 0.25 * trust.predicted) {
      trust.damping *= 2.0;
    }
    trust.damping = fmin(fmax(trust.damping, kLeastDamping), kMostDamping);
    trust.trial = false;
    observe(rule, stage, loss, true, trace, lane);
    return;
  }
  trust.damping = fmax(trust.damping * stage.solver.damping_up, kLeastDamping);
  reject(rule, stage, trust.damping > kHopelessDamping, trace, lane);
}

// Takes in an evaluation of an lbfgs stage's lane. `finite`: the gradient.
PYINV_HOST_DEVICE inline void observe_searching(const RunRule& rule, const StageRule& stage,
                                                float loss, bool finite, float* trace,
                                                LaneState& lane) {
  const double fall = double{lane.previous_loss} - loss + lane.trust.penalty_fall;
  const bool falls = fall > 0.0 && fall >= kEnoughFall * lane.trust.predicted;
  if (!lane.trust.trial || (finite && fabsf(loss) <= 3.402823466e38f && falls)) {
    lane.search.length = 1.0;
    lane.search.rejected = 0;
    observe(rule, stage, loss, finite, trace, lane);
    if (lane.stop == kNoStop) lane.action |= kAccept | kSolve;
    return;
  }
  Search& search = lane.search;
  search.length *= kCut;
  bool hopeless = false;
  if (++search.rejected == kMostRejected) {
    hopeless = search.pairs == 0;
    forget_pairs(search);
  }
  reject(rule, stage, hopeless, trace, lane);
}

// Takes in an evaluation of a lane on its own or in a group, whatever its stage does. `finite`: all
// that was evaluated but the loss.
PYINV_HOST_DEVICE inline void observe_any(const RunRule& rule, const StageRule& stage, float loss,
                                          bool finite, float* trace, LaneState& lane) {
  if (solves(stage)) {
    observe_solving(rule, stage, loss, finite, trace, lane);
  } else if (searches(stage)) {
    observe_searching(rule, stage, loss, finite, trace, lane);
  } else {
    observe(rule, stage, loss, finite, trace, lane);
  }
}

// The factor of the prior penalty at a latent of this loss.
PYINV_HOST_DEVICE inline double prior_slope(const RunRule& rule, const StageRule& stage, float loss,
                                            const LaneState& lane) {
  const Penalties& penalty = stage.penalties;
  if (!(penalty.prior_weight > 0.0f)) return 0.0;
  const double left = static_cast<double>(lane.stage_steps) / static_cast<double>(stage.max_steps);
  return double{penalty.prior_weight} * (penalty.anneal_prior ? 1.0 - left : 1.0) *
         (penalty.relative_prior ? fmax(double{loss}, 0.0) : 1.0) /
         (double{rule.prior.std} * rule.prior.std * static_cast<double>(rule.latent_size));
}

// What the random draws of the lane's next update depend on.
PYINV_HOST_DEVICE inline void name_update(const RunRule& rule, LaneState& lane) {
  lane.step.key = {rule.seed, lane.id, static_cast<uint32_t>(lane.attempt)};
  lane.step.update = static_cast<uint32_t>(lane.attempt_steps + 1);
  lane.step.stage_update = static_cast<uint32_t>(lane.stage_steps + 1);
}

PYINV_HOST_DEVICE inline void count_update(LaneState& lane) {
  ++lane.stage_steps;
  ++lane.attempt_steps;
  ++lane.total_steps;
}

// Prepares the lane's next trial, if it is to make one. The kernel that makes it counts it.
PYINV_HOST_DEVICE inline void plan_trial(const RunRule& rule, const StageRule& stage,
                                         LaneState& lane) {
  if (lane.action & kAccept) {
    lane.trust.former_slope = lane.trust.prior_slope;
    lane.trust.prior_slope = prior_slope(rule, stage, lane.previous_loss, lane);
  }
  name_update(rule, lane);
}

// Prepares the lane's next update. `loss` is that of its latent.
PYINV_HOST_DEVICE inline void plan_step(const RunRule& rule, const StageRule& stage,
                                        const Moments& moments, float loss, LaneState& lane) {
  const double d = static_cast<double>(rule.latent_size);
  const double rate = learning_rate(stage.solver, lane.stage_steps, stage.max_steps);
  double step_size = rate, second_root = 1.0;
  if (stage.solver.kind == SolverKind::adam) {
    const double t = static_cast<double>(lane.stage_steps + 1);
    step_size /= 1.0 - pow(stage.solver.beta1, t);
    second_root = sqrt(1.0 - pow(stage.solver.beta2, t));
  }
  LaneStep& step = lane.step;
  name_update(rule, lane);
  step.learning_rate = static_cast<float>(rate);
  step.step_size = static_cast<float>(step_size);
  step.second_root = static_cast<float>(second_root);
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
  count_update(lane);
  lane.action |= kStep;
}

// What an observed lane that depends on no other does next.
// `loss` is that of the evaluation.
PYINV_HOST_DEVICE inline void decide(const RunRule& rule, const StageRule& stage, float loss,
                                     LaneState& lane) {
  if (lane.stop == kNoStop && makes_trials(stage)) {
    plan_trial(rule, stage, lane);
  } else if (lane.stop == kNoStop) {
    plan_step(rule, stage, lane.moments, loss, lane);
  } else if (!ends_attempt(rule, lane, lane.stop)) {
    begin_stage(lane, lane.stage + 1);
  } else {
    end_attempt(lane, lane.stop);
    if (restarts(rule, lane)) {
      restart(rule, lane);
    } else {
      lane.done = true;
    }
  }
}

// The lanes of a group tie each other's losses together: they start and end every stage as one.
// What all of them do next hangs on three questions asked of every observed lane:
struct GroupVotes {
  bool all_met;   // a stop rule in this stage
  bool any_left;  // with more stages before it
  bool any_retry;

  PYINV_HOST_DEVICE void join(const GroupVotes& other) {
    all_met = all_met && other.all_met;
    any_left = any_left || other.any_left;
    any_retry = any_retry || other.any_retry;
  }
};

PYINV_HOST_DEVICE inline GroupVotes vote(const RunRule& rule, LaneState& lane) {
  // Of several rules met along the way, convergence is the one that counts.
  if (lane.stop == static_cast<uint8_t>(Status::converged) || lane.met == kNoStop) {
    lane.met = lane.stop;
  }
  if (lane.met == kNoStop) return {false, false, false};
  // What the attempt will be, were it to end now.
  LaneState ended = lane;
  end_attempt(ended, lane.met);
  return {true, !lane.over && !ends_attempt(rule, lane, lane.met), restarts(rule, ended)};
}

PYINV_HOST_DEVICE inline void decide_in_group(const RunRule& rule, const StageRule& stage,
                                              const GroupVotes& votes, const Moments& batch,
                                              float loss, LaneState& lane) {
  if (!votes.all_met) {
    if (!lane.finite) return;
    const bool over_batch = stage.penalties.moments == MomentScope::batch;
    plan_step(rule, stage, over_batch ? batch : lane.moments, loss, lane);
  } else if (lane.stage + 1 < rule.stages && votes.any_left) {
    if (ends_attempt(rule, lane, lane.met)) end_attempt(lane, lane.met);
    begin_stage(lane, lane.stage + 1);
  } else {
    end_attempt(lane, lane.met);
    if (votes.any_retry) {
      restart(rule, lane);
    } else {
      lane.done = true;
    }
  }
}

// The run ends before the lane's target is finished.
PYINV_HOST_DEVICE inline void abandon(LaneState& lane) {
  lane.action = 0;
  if (lane.done) return;
  end_attempt(lane, static_cast<uint8_t>(Status::cancelled));
  lane.best_status = static_cast<uint8_t>(Status::cancelled);
  lane.done = true;
}

PYINV_HOST_DEVICE inline LaneReport report(const StageRule* stages, const LaneState& lane,
                                           float loss) {
  // A trial says nothing yet of how the lane fares.
  const bool accepted =
      makes_trials(stages[lane.stage]) && lane.previous_loss == lane.previous_loss;
  return {lane.row,
          lane.total_steps,
          lane.trust.normal_equations,
          accepted ? lane.previous_loss : loss,
          lane.best_loss,
          lane.nearest,
          lane.attempts,
          wanted_objective(stages, lane),
          lane.best_status,
          lane.done};
}

// Neighbours in memory, read and written at once; they start at a multiple of their size.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

template <int kWidth, class T>
PYINV_HOST_DEVICE inline Pack<T, kWidth>& pack(T* values) {
  return *reinterpret_cast<Pack<T, kWidth>*>(values);
}

// What was decided, done to the components [component, component + kWidth) of a lane. All that is
// read is read before anything is written: a compiler does not know that no two arrays overlap, and
// would have a GPU wait for every write. The outbox may lie in memory that is slow to reach.
template <int kWidth>
PYINV_HOST_DEVICE inline void act(const LaneArrays& lanes, int64_t lane, int64_t component) {
  const LaneState& state = lanes.state[lane];
  const uint8_t action = state.action;
  if (!action) return;
  const int64_t k = lane * lanes.latent_size + component;
  const uint32_t number = static_cast<uint32_t>(component);

  Pack<float, kWidth> z = pack<kWidth>(lanes.latent + k), m{}, v{}, gradient{}, recorded{};
  Pack<uint32_t, kWidth> born{};
  if (action & kReturn) z = pack<kWidth>(lanes.second_moment + k);
  if (action & kStep) {
    gradient = pack<kWidth>(lanes.gradient + k);
    m = pack<kWidth>(lanes.first_moment + k);
    v = pack<kWidth>(lanes.second_moment + k);
    born = pack<kWidth>(lanes.born + k);
  }
  if (action & kRecord) {
    recorded = z;
  } else if (action & kKeep) {
    recorded = pack<kWidth>(lanes.recorded + k);
  }
  const bool from_best = action & kDraw && hops(*lanes.rule, state);
  const Pack<float, kWidth> kept =
      from_best && !(action & kKeep) ? pack<kWidth>(lanes.outbox + k) : recorded;

  bool reborn = false;
  if (action & kStep) {
    const StepRule& rule = lanes.stages[state.stage].step;
    PYINV_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      const uint32_t was_born = born.at[i];
      step_component(rule, state.step, number + i, gradient.at[i], z.at[i], m.at[i], v.at[i],
                     born.at[i]);
      reborn |= born.at[i] != was_born;
    }
  }
  if (action & kDraw) {
    const RunRule& rule = *lanes.rule;
    const DrawKey key = {rule.seed, state.id, static_cast<uint32_t>(state.attempt)};
    PYINV_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      const float draw = initial_draw(rule.prior, key, number + i);
      z.at[i] = from_best ? hop_from(rule, kept.at[i], draw) : draw;
    }
  }
  if (action & kClearMoments) {
    const StageRule& next = lanes.stages[state.stage];
    PYINV_UNROLL
    for (int i = 0; i < kWidth; ++i) z.at[i] = within_bounds(next, z.at[i]);
    recorded = z;
    m = v = {};
    born = {};
  }

  if (action & (kReturn | kStep | kDraw | kClearMoments)) pack<kWidth>(lanes.latent + k) = z;
  if (action & (kStep | kClearMoments)) {
    pack<kWidth>(lanes.first_moment + k) = m;
    pack<kWidth>(lanes.second_moment + k) = v;
  }
  if (reborn || action & kClearMoments) pack<kWidth>(lanes.born + k) = born;
  if (action & (kRecord | kClearMoments)) pack<kWidth>(lanes.recorded + k) = recorded;
  if (action & kKeep) pack<kWidth>(lanes.outbox + k) = kept;
}

}  // namespace pyinv
