// Levenberg-Marquardt: the trial step solves the damped normal equations
//
//   (H + (c + lambda m) I) delta = -(g + c (z - mean)),
//
// H the gram at the accepted latent z, g its gradient, c the prior penalty's slope, m the mean of
// H's diagonal (Levenberg 1944, Marquardt 1963). Lambda is adapted to how well the model predicted
// the last trial step. A lane evaluates normal equations at every accepted latent, and only the
// loss at a trial. All arithmetic is in double, with one rounding per operation and every sum in
// the order of its terms, so that results are the same on every device.
#pragma once

#include "solvers/cholesky.h"
#include "solvers/trial.h"

namespace pyinv {

struct LevenbergMarquardtState {
  double damping;  // lambda, in units of the mean of the gram's diagonal
};

struct LevenbergMarquardt : TrialSolver {
  static constexpr SolverKind kKind = SolverKind::levenberg_marquardt;
  static constexpr const char* kName = "levenberg_marquardt";
  static constexpr bool kSolvesNormalEquations = true;
  using State = LevenbergMarquardtState;

  // A larger gram takes megabytes per lane and hundreds of forward passes.
  static constexpr int64_t kMaxComponents = 512;
  // Beyond kHopelessDamping a step is so short that after a rejection the stage ends.
  static constexpr double kMinDamping = 1e-8, kMaxDamping = 1e8, kHopelessDamping = 1e5;
  // How often a trial raises the damping if the matrix is not positive definite.
  static constexpr int kMaxRaises = 30;

  static std::string problem(const Solver&, int64_t latent_size) {
    if (latent_size <= kMaxComponents) return {};
    return "takes latents of at most " + std::to_string(kMaxComponents) + " components, got " +
           std::to_string(latent_size) + "; use lbfgs";
  }

  static Storage storage(const Solver&) { return {.vectors = kAcceptedVectors}; }

  static int64_t workers(int64_t d) { return 2 * d; }

  // The factor is in near memory if it fits.
  static Scratch scratch(int64_t d, size_t near_bytes) {
    const int64_t vectors = 2 * d + (d + 7) / 8, factor = packed_row(d);
    const bool fits = static_cast<size_t>(vectors + factor) * sizeof(double) <= near_bytes;
    return {.near = vectors + (fits ? factor : 0), .far = fits ? 0 : factor};
  }

  PYINV_HOST_DEVICE static void take_in(const RunRule& rule, const StageRule& stage, float loss,
                                        bool finite, float* trace, LaneState& lane) {
    double& damping = lane.solver.as<State>().damping;
    if (!lane.trial.pending) {
      ++lane.normal_equations;
      if (lane.previous_loss != lane.previous_loss) {
        damping = stage.solver.damping;
        update_status(rule, stage, loss, finite, trace, lane);
      } else {
        // The latent was accepted as a trial. Its loss is kept, because the next trial's loss is
        // computed by the same function.
        lane.action = 0;
        lane.finite = finite && fabsf(loss) <= 3.402823466e38f;
        lane.stop = lane.finite ? kNoStop : static_cast<uint8_t>(Status::non_finite);
      }
      if (lane.stop == kNoStop) lane.action |= kAccept | kPropose;
      return;
    }
    const double fall = trial_fall(loss, lane), predicted = lane.trial.predicted;
    // False for a loss that is not finite.
    if (fabsf(loss) <= 3.402823466e38f && fall > 0.0 && fall > 1e-3 * predicted) {
      if (fall > 0.75 * predicted) {
        damping *= stage.solver.damping_down;
      } else if (fall < 0.25 * predicted) {
        damping *= 2.0;
      }
      damping = fmin(fmax(damping, kMinDamping), kMaxDamping);
      lane.trial.pending = false;
      update_status(rule, stage, loss, true, trace, lane);
      return;
    }
    damping = fmax(damping * stage.solver.damping_up, kMinDamping);
    reject(rule, stage, damping > kHopelessDamping, trace, lane);
  }

  template <class Team>
  PYINV_DEVICE static void propose(const Team& team, const LaneArrays& lanes, int64_t lane,
                                   double* near, double* far) {
    const int64_t d = lanes.latent_size;
    LaneState& state = lanes.state[lane];
    const StageRule& stage = lanes.stages[state.stage];
    const Accepted accepted = accepted_of(lanes, lane);
    const float* gram = lanes.gram + lane * lanes.gram_size;
    float* latent = lanes.latent + lane * d;
    double *column = near, *step = near + d, *factor = far ? far : near + 2 * d;
    auto* held = reinterpret_cast<uint8_t*>(near + 2 * d + (far ? 0 : packed_row(d)));
    if (state.action & kAccept) accept(team, lanes, lane, accepted);

    team.for_each(d, [=](int64_t i) { held[i] = accepted.held(i); });
    const double diagonal =
        team.ordered_sum(d, column, [=](int64_t i) -> double { return gram[i * d + i]; });
    const double mean = diagonal / static_cast<double>(d);
    const double unit = mean > 0.0 ? mean : 1.0;  // m; 1 for a gram of zeros
    double damping = state.solver.as<State>().damping;
    bool solved = false;
    for (int raises = 0;; ++raises) {
      solved = solve(team, accepted, gram, damping * unit, held, factor, column, step) &&
               try_step(team, stage, state.step, accepted, 1.0, step, latent);
      if (solved || raises == kMaxRaises) break;
      damping *= stage.solver.damping_up;
    }

    double predicted = 0.0, penalty = 0.0;
    if (solved) {
      // Use the actual step of the trial, after the constraint.
      team.for_each(d, [=](int64_t i) { step[i] = double{latent[i]} - accepted.latent[i]; });
      team.barrier();
      double* bend = column;
      multiply(team, d, gram, step, bend);
      predicted = team.ordered_sum(d, column, [=](int64_t i) {
        return step[i] * (accepted.right_side(i) - 0.5 * (bend[i] + accepted.slope * step[i]));
      });
      penalty = team.ordered_sum(d, column,
                                 [=](int64_t i) { return penalty_fall(accepted, i, step[i]); });
    } else {
      return_to(team, accepted, latent);
    }
    team.barrier();
    if (!team.is_leader()) return;
    state.solver.as<State>().damping = damping;
    end_trial(*lanes.rule, solved, predicted, penalty, state);
  }

 private:
  // Computes the step at this damping, lambda m; false if the matrix is not positive definite.
  // Components that are held are removed from the equations.
  template <class Team>
  PYINV_DEVICE static bool solve(const Team& team, const Accepted& accepted, const float* gram,
                                 double damping, const uint8_t* held, double* factor,
                                 double* column, double* step) {
    const int64_t d = accepted.size;
    const double added = accepted.slope + damping;
    team.barrier();  // the memory may be reused, and `held` is visible to all
    team.for_each(d, [=](int64_t i) { step[i] = held[i] ? 0.0 : accepted.right_side(i); });
    fill_triangle(team, d, factor, [=](int64_t i, int64_t j) {
      if (held[i] || held[j]) return i == j ? 1.0 : 0.0;
      const double value = gram[i * d + j];
      return i == j ? value + added : value;
    });
    if (!factorise(team, d, factor, column)) return false;
    substitute(team, d, factor, step);
    return true;
  }
};

}  // namespace pyinv
