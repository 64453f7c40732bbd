#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "solve_rule.h"

namespace pyinv {
namespace {

// One lane's work.
struct Work {
  double *factor, *column, *step;
  uint8_t* held;
};

// In place; false at a pivot that is none. Column by column, so that the inner loop is over
// neighbours, none of which waits for another.
bool factorise(int64_t d, const Work& work) {
  double *factor = work.factor, *column = work.column;
  for (int64_t k = 0; k < d; ++k) {
    double& pivot = factor[packed_row(k) + k];
    if (!is_positive(pivot)) return false;
    pivot = std::sqrt(pivot);
    for (int64_t i = k + 1; i < d; ++i) {
      double* row = factor + packed_row(i);
      const double scale = column[i] = row[k] /= pivot;
      for (int64_t j = k + 1; j <= i; ++j) row[j] -= scale * column[j];
    }
  }
  return true;
}

void substitute(int64_t d, const Work& work) {
  double* x = work.step;
  for (int64_t i = 0; i < d; ++i) {
    const double* row = work.factor + packed_row(i);
    for (int64_t k = 0; k < i; ++k) x[i] -= row[k] * x[k];
    x[i] /= row[i];
  }
  for (int64_t k = d - 1; k >= 0; --k) {
    const double* row = work.factor + packed_row(k);
    x[k] /= row[k];
    for (int64_t i = 0; i < k; ++i) x[i] -= row[i] * x[k];
  }
}

// Whether this damping, lambda m, gives a trial, which is then in `latent`.
bool try_damping(const NormalEquations& equations, const StageRule& stage, const LaneStep& lane,
                 double damping, const Work& work, float* latent) {
  const int64_t d = equations.size;
  for (int64_t i = 0; i < d; ++i) {
    double* row = work.factor + packed_row(i);
    for (int64_t j = 0; j <= i; ++j) {
      row[j] = equations.element(i, j, work.held[i] || work.held[j], damping);
    }
    work.step[i] = work.held[i] ? 0.0 : equations.right_side(i);
  }
  if (!factorise(d, work)) return false;
  substitute(d, work);
  bool finite = true;
  for (int64_t i = 0; i < d; ++i) {
    finite &= try_component(stage.step, lane, i, equations.latent[i], work.step[i], latent[i]);
  }
  return finite;
}

void solve_lane(const LaneArrays& lanes, int64_t lane, const Work& work) {
  const int64_t d = lanes.latent_size, first = lane * d;
  LaneState& state = lanes.state[lane];
  const StageRule& stage = lanes.stages[state.stage];
  float *latent = lanes.latent + first, *accepted = lanes.second_moment + first;
  if (state.action & kAccept) {
    if (state.action & kRecord) std::copy_n(latent, d, lanes.recorded + first);
    std::copy_n(latent, d, accepted);
    std::copy_n(lanes.gradient + first, d, lanes.first_moment + first);
  }

  const NormalEquations equations = normal_equations(lanes, lane);
  double diagonal = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    diagonal += equations.gram[i * d + i];
    work.held[i] = equations.held(i);
  }
  const double unit = damping_unit(diagonal / static_cast<double>(d));
  double& damping = state.trust.damping;
  bool solved = false;
  for (int raises = 0;; ++raises) {
    solved = try_damping(equations, stage, state.step, damping * unit, work, latent);
    if (solved || raises == kMostRaises) break;
    damping *= stage.solver.damping_up;
  }

  double predicted = 0.0, penalty = 0.0;
  if (solved) {
    double* bend = work.column;
    std::fill_n(bend, d, 0.0);
    for (int64_t j = 0; j < d; ++j) {
      work.step[j] = double{latent[j]} - accepted[j];
      const float* column = equations.gram + j * d;  // the gram is symmetric
      for (int64_t i = 0; i < d; ++i) bend[i] += column[i] * work.step[j];
    }
    for (int64_t i = 0; i < d; ++i) {
      predicted += model_fall(equations, i, work.step[i], bend[i]);
      penalty += penalty_fall(equations, i, work.step[i]);
    }
  } else {
    std::copy_n(accepted, d, latent);
  }
  end_trial(*lanes.rule, stage, solved, predicted, penalty, state);
}

}  // namespace

int64_t solve_scratch_cpu(int64_t d) { return packed_row(d) + 3 * d; }

void solve_cpu(const LaneArrays& lanes, int64_t active) {
  const int64_t d = lanes.latent_size;
  double* column = lanes.factors + packed_row(d);
  const Work work = {.factor = lanes.factors,
                     .column = column,
                     .step = column + d,
                     .held = reinterpret_cast<uint8_t*>(column + 2 * d)};
  for (int64_t lane = 0; lane < active; ++lane) {
    const LaneState& state = lanes.state[lane];
    if (state.action & kSolve && solves(lanes.stages[state.stage])) solve_lane(lanes, lane, work);
  }
}

}  // namespace pyinv
