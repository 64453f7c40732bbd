// The lanes of a run on a device: plain arrays and structs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "pyinv/engine.h"
#include "step_rule.h"

namespace pyinv {

// Mean and population standard deviation, in double because long latents have many terms.
struct Moments {
  double mean, std;
};

// A stage, resolved once per run.
struct StageRule {
  StepRule step;
  Solver solver;
  Penalties penalties;
  int32_t objective;
  int32_t normal_equations;  // also an index of an objective; -1: none
  bool makes_trials;         // whether its solver makes trial steps
  int64_t max_steps, patience;
  double loss_tolerance, change_tolerance, relative_change_tolerance;
};

// The parameters that all lanes share.
struct RunRule {
  Prior prior;
  Moments prior_moments;
  uint64_t seed;
  int64_t latent_size, restarts;
  int64_t trace_every, trace_length;  // trace_length 0: no trace
  int32_t stages;
  bool keep_best, coupled;
  Start start;
  float hop, stay;  // weights of the draw and the best latent in a hop; hop 0: draw only
  // The prior penalty that attempts are compared by, from the last stage. Weight 0: none.
  float rank_weight;
  bool rank_relative;
};

// Actions on a lane's components, in this order. The propose kernel does the first two, and kRecord
// if it accepts; the step kernel does the others.
enum LaneAction : uint8_t {
  kAccept = 64,    // accepted <- latent, its gradient and gram
  kPropose = 128,  // latent <- a trial: the accepted latent plus a step
  kReturn = 32,    // latent <- the accepted latent: the last trial was rejected
  kRecord = 1,     // attempt_latent <- latent
  kKeep = 2,       // best_latent <- attempt_latent: the best attempt so far
  kStep = 4,       // a first-order step
  kDraw = 8,       // latent <- an attempt's first latent: a draw, or a hop from best_latent
  // A stage or an attempt starts: attempt_latent <- latent, a first-order solver's vectors <- 0.
  kBegin = 16,
};

constexpr uint8_t kNoStop = 255;  // not a value of Status

// A lane's state common to all solvers that make trial steps (see solvers/trial.h).
struct TrialState {
  double prior_slope;   // c: the penalty is c/2 |z - mean|^2; fixed at an accepted latent
  double former_slope;  // c at the previously accepted latent
  double predicted;     // the decrease of the solver's model over the trial step
  double penalty_fall;  // the decrease of the penalty over the trial step
  bool pending;         // a trial waits for its evaluation
};

// Storage for a solver's own state of a lane between steps, a struct defined in the solver's file.
// The solver initialises it at the first evaluation of a stage.
class SolverState {
 public:
  template <class State>
  PYINV_HOST_DEVICE State& as() {
    static_assert(sizeof(State) <= sizeof(bytes_) && alignof(State) <= alignof(SolverState) &&
                  std::is_trivially_copyable_v<State>);
    return *reinterpret_cast<State*>(bytes_);
  }

 private:
  alignas(8) unsigned char bytes_[40];
};

// The arrays that a solver needs per lane: vectors of latent_size floats, vectors of latent_size
// counts, and doubles.
struct Storage {
  int64_t vectors = 0, count_vectors = 0, doubles = 0;
};

struct LaneState {
  uint64_t id;  // the target's id, for its random draws
  int64_t row;  // the target's index in the run
  int64_t stage_steps, attempt_steps, total_steps;
  int64_t unchanged;  // consecutive evaluations whose loss hardly changed
  int32_t attempt, stage;
  int32_t objective;  // the lane's current objective; it waits while its stage needs another
  float previous_loss;
  float attempt_loss;   // loss of the latent that the attempt would return now
  float earlier_loss;   // attempt_loss before the last tenth of the stage's steps; NaN: none yet
  float best_loss;      // of the best attempt so far
  int32_t attempts;     // finished attempts
  int32_t uncounted;    // 1 if the first attempt took no step from the mean: one more is allowed
  uint8_t best_status;  // a Status
  uint8_t stop;         // the stop rule that the evaluation meets, a Status or kNoStop
  uint8_t met;          // coupled lanes: the stop rule met in this stage
  uint8_t action;       // LaneActions
  bool over;            // coupled lanes: the attempt is over, but the lane stays in its group
  bool done;            // the target is finished, or the lane has none
  bool finite;          // whether loss and gradient are finite
  float nearest;        // the lowest error of a latent so far; NaN: none
  Moments moments;      // of the latent, if needed
  // The values that attempts are compared by: the loss plus the prior penalty.
  double attempt_rank, best_rank;
  int64_t normal_equations;  // evaluations for this target
  LaneStep step;
  TrialState trial;
  SolverState solver;
};

// The report of a lane to the host.
struct LaneReport {
  int64_t row, steps, normal_equations;
  float loss;       // of the last evaluation, or of the accepted latent
  float best_loss;  // of the best attempt so far
  float nearest;
  int32_t attempts;
  int32_t objective;  // the objective that the lane needs
  uint8_t status;
  bool done;
};

// All data of a run on its device. The host also reads `best_latent` and `trace`.
struct LaneArrays {
  const RunRule* rule;
  const StageRule* stages;
  LaneState* state;                // [lanes]
  float *latent, *attempt_latent;  // [lanes, latent_size]; attempt_latent: the result so far
  float* gradient;                 // [lanes, latent_size]
  float* gram;                     // [lanes, gram_size], at the accepted latent
  float* loss;                     // [lanes]
  float *image, *condition;        // [lanes, image_size], [lanes, condition_size]
  float* weights;                  // [lanes, weights_size]
  float* truth;                    // [lanes, truth_size]
  Moments* batch_moments;          // [1]
  float* best_latent;              // [lanes, latent_size], of the finished attempts
  float* trace;                    // [lanes, trace_length]
  // [latent_size, latent_size], of all lanes; null: the identity. Only L-BFGS uses it.
  const float* preconditioner;
  // The solvers' storage, reused from stage to stage.
  float* vectors;           // [storage.vectors, lanes, latent_size]
  uint32_t* count_vectors;  // [storage.count_vectors, lanes, latent_size]
  double* doubles;          // [lanes, storage.doubles]
  double* scratch;          // for the teams of the propose kernel
  int64_t lanes, latent_size, image_size, condition_size, trace_length;
  int64_t weights_size;  // image_size, or 0: the objectives take no weights
  int64_t truth_size;    // latent_size, or 0: `nearest` is not computed
  int64_t gram_size;     // latent_size^2, or 0: no stage solves normal equations
  Storage storage;       // the most that any solver needs
};

PYINV_HOST_DEVICE inline float* solver_vector(const LaneArrays& lanes, int64_t number,
                                              int64_t lane) {
  return lanes.vectors + (number * lanes.lanes + lane) * lanes.latent_size;
}
PYINV_HOST_DEVICE inline double* solver_doubles(const LaneArrays& lanes, int64_t lane) {
  return lanes.doubles + lane * lanes.storage.doubles;
}

// A lane gets the target `row` and the first stage's objective.
struct Refill {
  int64_t lane, row;
};

struct LanePair {
  int64_t first, second;
};

// A lane gets another objective.
struct Reassignment {
  int64_t lane;
  int32_t objective;
};

}  // namespace pyinv
