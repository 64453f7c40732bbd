// The lanes of a run as every device keeps them: plain arrays and plain structs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "pyinv/engine.h"
#include "step_rule.h"

namespace pyinv {

// Mean and population standard deviation, in double: a batch of long latents has many terms.
struct Moments {
  double mean, std;
};

// One stage, resolved once per run.
struct StageRule {
  StepRule step;
  Solver solver;
  Penalties penalties;
  int32_t objective;
  int32_t normal_equations;  // an objective too; -1: a stage that solves none
  bool makes_trials;         // its solver does
  int64_t max_steps, patience;
  double loss_tolerance, change_tolerance, relative_change_tolerance;
};

// What all lanes share.
struct RunRule {
  Prior prior;
  Moments prior_moments;
  uint64_t seed;
  int64_t latent_size, restarts;
  int64_t trace_every, trace_length;  // trace_length 0: no trace
  int32_t stages;
  bool keep_best, coupled;
  Start start;
  float hop, stay;  // the shares of the draw and of the best latent in a restart's; hop 0: drawn
  // The prior penalty that attempts are compared by: the last stage's; weight 0: none.
  float rank_weight;
  bool rank_relative;
};

// What the kernels have to do with a lane's components, in this order. The propose kernel does the
// first two, with kRecord where it accepts, and leaves the rest to the step kernel.
enum LaneAction : uint8_t {
  kAccept = 64,    // accepted <- latent, its gradient and gram
  kPropose = 128,  // latent <- a trial: the accepted one and a step
  kReturn = 32,    // latent <- the accepted one: the last trial was in vain
  kRecord = 1,     // attempt_latent <- latent
  kKeep = 2,       // best_latent <- attempt_latent: the best attempt so far
  kStep = 4,       // a first-order step
  kDraw = 8,       // latent <- an attempt's first: a draw, or a hop from best_latent
  // A stage or an attempt begins: attempt_latent <- latent, a first-order solver's vectors <- 0.
  kBegin = 16,
};

constexpr uint8_t kNoStop = 255;  // beside the values of Status

// What all solvers that make trial steps keep of a lane (see solvers/trial.h).
struct TrialState {
  double prior_slope;   // c: the penalty is c/2 |z - mean|^2; fixed at an accepted latent
  double former_slope;  // c at the one accepted before
  double predicted;     // how far the solver's model falls by the trial step
  double penalty_fall;  // how far the penalty falls by it
  bool pending;         // a trial is evaluated next, or waits for that
};

// Room for what a solver keeps of a lane from one step to the next: a struct of its own file. The
// solver sets it up at the first evaluation of a stage.
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

// What a solver keeps of a lane in arrays: vectors of latent_size floats, as many of counts, and
// doubles.
struct Storage {
  int64_t vectors = 0, count_vectors = 0, doubles = 0;
};

struct LaneState {
  uint64_t id;  // the target's, for its random draws
  int64_t row;  // the target's, of the run's targets
  int64_t stage_steps, attempt_steps, total_steps;
  int64_t unchanged;  // evaluations in a row whose loss hardly changed
  int32_t attempt, stage;
  int32_t objective;  // what this lane is evaluated with; it waits while its stage has another
  float previous_loss;
  float attempt_loss;   // of the latent that the attempt would return now
  float best_loss;      // of the best attempt so far
  int32_t attempts;     // that have ended
  uint8_t best_status;  // a Status
  uint8_t stop;         // the stop rule that this evaluation meets, a Status or kNoStop
  uint8_t met;          // coupled lanes: the one met in this stage
  uint8_t action;       // LaneActions
  bool over;            // coupled lanes: the attempt; the lane stays for its group's sake
  bool done;            // the target is finished, or the lane never had one
  bool finite;          // loss and gradient
  float nearest;        // the lowest error of a latent so far; NaN: of none
  Moments moments;      // of the latent, where they are wanted
  // What attempts are compared by: the loss and the prior penalty.
  double attempt_rank, best_rank;
  int64_t normal_equations;  // evaluated for this target
  LaneStep step;
  TrialState trial;
  SolverState solver;
};

// What the host learns of a lane.
struct LaneReport {
  int64_t row, steps, normal_equations;
  float loss;       // of the last evaluation, or of the accepted latent
  float best_loss;  // of the best attempt so far
  float nearest;
  int32_t attempts;
  int32_t objective;  // that the lane wants
  uint8_t status;
  bool done;
};

// Everything of a run on its device. `best_latent` and `trace` are read by the host as well.
struct LaneArrays {
  const RunRule* rule;
  const StageRule* stages;
  LaneState* state;                // [lanes]
  float *latent, *attempt_latent;  // [lanes, latent_size]; what the attempt would return now
  float* gradient;                 // [lanes, latent_size]
  float* gram;                     // [lanes, gram_size], the accepted latent's
  float* loss;                     // [lanes]
  float *image, *condition;        // [lanes, their size]
  float* truth;                    // [lanes, truth_size]
  Moments* batch_moments;          // [1]
  float* best_latent;              // [lanes, latent_size], of the attempts that have ended
  float* trace;                    // [lanes, trace_length]
  // What the solvers of the run's stages keep, each stage's in its turn.
  float* vectors;           // [storage.vectors, lanes, latent_size]
  uint32_t* count_vectors;  // [storage.count_vectors, lanes, latent_size]
  double* doubles;          // [lanes, storage.doubles]
  double* scratch;          // of the teams that propose steps
  int64_t lanes, latent_size, image_size, condition_size, trace_length;
  int64_t truth_size;  // latent_size, or 0: nobody asks for `nearest`
  int64_t gram_size;   // latent_size^2, or 0: nobody solves normal equations
  Storage storage;     // enough for each of the solvers
};

PYINV_HOST_DEVICE inline float* solver_vector(const LaneArrays& lanes, int64_t number,
                                              int64_t lane) {
  return lanes.vectors + (number * lanes.lanes + lane) * lanes.latent_size;
}
PYINV_HOST_DEVICE inline double* solver_doubles(const LaneArrays& lanes, int64_t lane) {
  return lanes.doubles + lane * lanes.storage.doubles;
}

// A lane takes the target `row`, and is evaluated with the first stage's objective.
struct Refill {
  int64_t lane, row;
};

struct LanePair {
  int64_t first, second;
};

// A lane is evaluated with another objective from now on.
struct Reassignment {
  int64_t lane;
  int32_t objective;
};

}  // namespace pyinv
