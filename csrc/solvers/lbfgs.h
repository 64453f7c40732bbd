// L-BFGS: the trial step is t times the direction -H g. g is the gradient of the loss with its
// penalty, H the approximation of the inverse Hessian from the last pairs (Nocedal 1980; Liu &
// Nocedal 1989; the recursion is algorithm 7.4 of Nocedal & Wright 2006). At a bound, components
// that point outwards are removed from g and from the direction (Bertsekas 1982). Pairs are in
// float, all sums in double. H starts from a multiple of the run's preconditioner.
#pragma once

#include "solvers/trial.h"

namespace pyinv {

// The state of a lane's pairs: steps s and the differences y of the gradients at their ends.
struct LbfgsState {
  int64_t made;      // pairs made so far; stored in a ring buffer
  int64_t pairs;     // how many of the last pairs are used
  double curvature;  // s y / y y of the newest pair
  double length;     // t
  int32_t rejected;  // consecutive rejected trials

  PYINV_HOST_DEVICE void forget_pairs() {
    pairs = 0;
    length = 1.0;
    rejected = 0;
  }
};

struct Lbfgs : TrialSolver {
  static constexpr SolverKind kKind = SolverKind::lbfgs;
  static constexpr const char* kName = "lbfgs";
  using State = LbfgsState;

  static constexpr int64_t kMaxPairs = 1000;
  // Nocedal and Wright's algorithm 3.1: the fraction of the predicted decrease that a step must
  // achieve, and the factor that shortens a rejected step.
  static constexpr double kEnoughFall = 1e-4, kCut = 0.3;
  // A step shortened by more than a million hardly changes a float32.
  static constexpr int32_t kMaxRejected = 12;

  static std::string problem(const Solver& settings, int64_t) {
    if (settings.history >= 1 && settings.history <= kMaxPairs) return {};
    return "takes a history of 1 to " + std::to_string(kMaxPairs) + " pairs, got " +
           std::to_string(settings.history);
  }

  static Storage storage(const Solver& settings) {
    return {.vectors = kAcceptedVectors + 2 * settings.history, .doubles = 2 * settings.history};
  }

  static int64_t workers(int64_t d) { return d; }

  // The direction and its product with the preconditioner may be too long for near memory.
  static Scratch scratch(int64_t d, size_t) { return {.near = kMaxWorkers, .far = 2 * d}; }

  PYINV_HOST_DEVICE static void take_in(const RunRule& rule, const StageRule& stage, float loss,
                                        bool finite, float* trace, LaneState& lane) {
    State& state = lane.solver.as<State>();
    if (!lane.trial.pending) state = {};  // the stage's first latent
    const double fall = trial_fall(loss, lane);
    const bool falls = fall > 0.0 && fall >= kEnoughFall * lane.trial.predicted;
    if (!lane.trial.pending || (finite && fabsf(loss) <= 3.402823466e38f && falls)) {
      state.length = 1.0;
      state.rejected = 0;
      update_status(rule, stage, loss, finite, trace, lane);
      if (lane.stop == kNoStop) lane.action |= kAccept | kPropose;
      return;
    }
    state.length *= kCut;
    bool hopeless = false;
    if (++state.rejected == kMaxRejected) {
      hopeless = state.pairs == 0;
      state.forget_pairs();
    }
    reject(rule, stage, hopeless, trace, lane);
  }

  template <class Team>
  PYINV_DEVICE static void propose(const Team& team, const LaneArrays& lanes, int64_t lane,
                                   double* near, double* direction) {
    const int64_t d = lanes.latent_size;
    const RunRule& rule = *lanes.rule;
    LaneState& state = lanes.state[lane];
    const StageRule& stage = lanes.stages[state.stage];
    const Accepted accepted = accepted_of(lanes, lane);
    const Pairs pairs = pairs_of(lanes, lane);
    const Preconditioner preconditioner{
        .matrix = stage.solver.preconditioned ? lanes.preconditioner : nullptr,
        .product = direction + d};
    float* latent = lanes.latent + lane * d;
    State search = state.solver.as<State>();  // each worker has a copy with the same values
    if (state.action & kAccept) {
      if (state.trial.pending) {
        add_pair(team, lanes, lane, accepted, pairs, preconditioner, near, search);
      }
      accept(team, lanes, lane, accepted);
      team.barrier();  // the pair's product is visible to all workers
    }

    bool found = false;
    for (;;) {
      found = find_direction(team, rule, stage, accepted, pairs, preconditioner, search, direction,
                             near) &&
              try_step(team, stage, state.step, accepted, search.length, direction, latent);
      if (found || search.pairs == 0) break;
      search.forget_pairs();
    }

    double promised = 0.0, penalty = 0.0;
    if (found) {
      const auto step = [=](int64_t i) { return double{latent[i]} - accepted.latent[i]; };
      promised = team.sum(d, near, [=](int64_t i) { return step(i) * accepted.right_side(i); });
      penalty = team.sum(d, near, [=](int64_t i) { return penalty_fall(accepted, i, step(i)); });
    } else {
      return_to(team, accepted, latent);
    }
    team.barrier();  // all workers have read the state
    if (!team.is_leader()) return;
    state.solver.as<State>() = search;
    end_trial(rule, found, promised, penalty, state);
  }

 private:
  // The arrays of a lane's pairs.
  struct Pairs {
    float* values;     // of the first pair's s
    double* products;  // s y
    double* weights;   // from the recursion's first loop, for its second
    int64_t distance;  // distance between a pair's arrays
    int64_t history;

    // The index of the pair that is `age` older than the newest of `made`.
    PYINV_HOST_DEVICE int64_t place(int64_t made, int64_t age) const {
      return (made - 1 - age) % history;
    }
    PYINV_HOST_DEVICE float* s(int64_t place) const { return values + 2 * place * distance; }
    PYINV_HOST_DEVICE float* y(int64_t place) const { return values + (2 * place + 1) * distance; }
  };

  PYINV_HOST_DEVICE static Pairs pairs_of(const LaneArrays& lanes, int64_t lane) {
    const int64_t history = lanes.stages[lanes.state[lane].stage].solver.history;
    double* products = solver_doubles(lanes, lane);
    return {.values = solver_vector(lanes, kAcceptedVectors, lane),
            .products = products,
            .weights = products + history,
            .distance = lanes.lanes * lanes.latent_size,
            .history = history};
  }

  // The matrix that H starts from, up to its scale; null: the identity.
  struct Preconditioner {
    const float* matrix;  // [d, d]
    double* product;      // [d], scratch
  };

  // A component of the pair of a newly accepted latent. Both gradients are those of the loss with
  // the penalty that the trial step used.
  struct PairComponent {
    float s, y;
  };
  PYINV_HOST_DEVICE static PairComponent pair_component(const Accepted& before, double former_slope,
                                                        int64_t i, float latent, float gradient) {
    const double s = double{latent} - before.latent[i];
    const double y = (double{gradient} - before.gradient[i]) + former_slope * s;
    return {static_cast<float>(s), static_cast<float>(y)};
  }

  // Stores the pair of the newly accepted latent if the slope increases along its step. Otherwise H
  // would not stay positive definite.
  template <class Team>
  PYINV_DEVICE static void add_pair(const Team& team, const LaneArrays& lanes, int64_t lane,
                                    const Accepted& before, const Pairs& pairs,
                                    const Preconditioner& preconditioner, double* near,
                                    State& search) {
    const int64_t d = lanes.latent_size, first = lane * d;
    const float *latent = lanes.latent + first, *gradient = lanes.gradient + first;
    const double slope = lanes.state[lane].trial.former_slope;
    const auto pair = [=](int64_t i) {
      return pair_component(before, slope, i, latent[i], gradient[i]);
    };
    const double sy = team.sum(d, near, [=](int64_t i) { return double{pair(i).s} * pair(i).y; });
    const double yy = team.sum(d, near, [=](int64_t i) { return double{pair(i).y} * pair(i).y; });
    if (!(is_positive(sy) && is_positive(yy) && sy > 1e-10 * yy)) return;
    ++search.made;
    if (search.pairs < pairs.history) ++search.pairs;
    const int64_t place = pairs.place(search.made, 0);
    if (team.is_leader()) pairs.products[place] = sy;
    float *s = pairs.s(place), *y = pairs.y(place);
    team.for_each(d, [=](int64_t i) {
      const PairComponent now = pair(i);
      s[i] = now.s;
      y[i] = now.y;
    });
    if (!preconditioner.matrix) {
      search.curvature = sy / yy;
      return;
    }
    team.multiply(preconditioner.matrix, d, y, preconditioner.product);
    const double* product = preconditioner.product;
    search.curvature = sy / team.sum(d, near, [=](int64_t i) { return y[i] * product[i]; });
  }

  template <class Team>
  PYINV_DEVICE static void hold(const Team& team, const Accepted& at, double* direction) {
    team.for_each(at.size, [=](int64_t i) {
      if (at.held(i)) direction[i] = 0.0;
    });
  }

  // Multiplies the direction by `scale` times the preconditioner.
  template <class Team>
  PYINV_DEVICE static void start(const Team& team, const Preconditioner& preconditioner,
                                 const Accepted& at, double scale, double* direction) {
    const double* product = direction;
    if (preconditioner.matrix) {
      hold(team, at, direction);
      team.multiply(preconditioner.matrix, at.size, direction, preconditioner.product);
      product = preconditioner.product;
    }
    team.for_each(at.size, [=](int64_t i) { direction[i] = scale * product[i]; });
  }

  // Computes -H g; false if it is not a descent direction.
  template <class Team>
  PYINV_DEVICE static bool find_direction(const Team& team, const RunRule& rule,
                                          const StageRule& stage, const Accepted& at,
                                          const Pairs& pairs, const Preconditioner& preconditioner,
                                          const State& search, double* direction, double* near) {
    const int64_t d = at.size;
    team.for_each(d, [=](int64_t i) { direction[i] = at.held(i) ? 0.0 : at.right_side(i); });
    if (search.pairs == 0) {
      start(team, preconditioner, at, 1.0, direction);
      hold(team, at, direction);
      const double norm =
          sqrt(team.sum(d, near, [=](int64_t i) { return direction[i] * direction[i]; }));
      const double scale = stage.solver.first_step * rule.prior_moments.std / norm;
      team.for_each(d, [=](int64_t i) { direction[i] *= scale; });
      return is_positive(norm);
    }
    for (int64_t age = 0; age < search.pairs; ++age) {
      const int64_t place = pairs.place(search.made, age);
      const float *s = pairs.s(place), *y = pairs.y(place);
      const double weight =
          team.sum(d, near, [=](int64_t i) { return s[i] * direction[i]; }) / pairs.products[place];
      // Read in the second loop, after its sums, which are barriers.
      if (team.is_leader()) pairs.weights[place] = weight;
      team.for_each(d, [=](int64_t i) { direction[i] -= weight * y[i]; });
    }
    start(team, preconditioner, at, search.curvature, direction);
    for (int64_t age = search.pairs - 1; age >= 0; --age) {
      const int64_t place = pairs.place(search.made, age);
      const float *s = pairs.s(place), *y = pairs.y(place);
      const double weight =
          team.sum(d, near, [=](int64_t i) { return y[i] * direction[i]; }) / pairs.products[place];
      const double back = pairs.weights[place] - weight;
      team.for_each(d, [=](int64_t i) { direction[i] += back * s[i]; });
    }
    hold(team, at, direction);
    return is_positive(
        team.sum(d, near, [=](int64_t i) { return direction[i] * at.right_side(i); }));
  }
};

}  // namespace pyinv
