// The lanes of a run as every device keeps them: plain arrays and plain structs.
#pragma once

#include <cstdint>

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

// What the kernels have to do with a lane's components, in this order. The kernels that make
// trials, solve and lbfgs, clear what is theirs and leave the rest to the step kernel.
enum LaneAction : uint8_t {
  kAccept = 64,        // accepted <- latent, its gradient and gram
  kSolve = 128,        // latent <- a trial: the accepted one and a step
  kReturn = 32,        // latent <- the accepted one: the last trial was in vain
  kRecord = 1,         // recorded <- latent
  kKeep = 2,           // outbox <- recorded: the best attempt so far
  kStep = 4,           // one update
  kDraw = 8,           // latent <- an attempt's first: a draw, or a hop from the outbox
  kClearMoments = 16,  // and recorded <- latent: a stage or an attempt begins
};

constexpr uint8_t kNoStop = 255;  // beside the values of Status

// A lane whose stage makes trials goes from one accepted latent to the next: it evaluates, with the
// stage's objective, trials, until one is accepted. With normal equations, it evaluates those at
// the accepted one in between.
struct Trust {
  int64_t normal_equations;  // evaluated for this target
  double damping;            // lambda, of the mean of the gram's diagonal
  double prior_slope;        // c: the penalty is c/2 |z - mean|^2; fixed at an accepted latent
  double former_slope;       // c at the one accepted before
  double predicted;          // how far the model falls by the trial's step
  double penalty_fall;       // how far the penalty falls by it
  bool trial;                // what is evaluated next, or waits for that
};

// What a lane of an lbfgs stage knows beside its pairs, the steps s it took and the differences y
// of the gradients at their ends.
struct Search {
  int64_t made;      // pairs; they lie in a ring, as far as it reaches
  int64_t pairs;     // of the last ones, how many count
  double curvature;  // s y / y y of the newest
  double length;     // t: the trial's step is t times the direction
  int32_t rejected;  // trials in a row
};

struct LaneState {
  uint64_t id;  // the target's, for its random draws
  int64_t row;  // the target's, of the run's targets
  int64_t stage_steps, attempt_steps, total_steps;
  int64_t unchanged;  // evaluations in a row whose loss hardly changed
  int32_t attempt, stage;
  int32_t objective;  // what this lane is evaluated with; it waits while its stage has another
  float previous_loss;
  float recorded_loss;  // of the latent that the attempt would return now
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
  double recorded_rank, best_rank;
  LaneStep step;
  Trust trust;
  Search search;
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

// Everything of a run on its device. `outbox` and `trace` are read by the host as well.
struct LaneArrays {
  const RunRule* rule;
  const StageRule* stages;
  LaneState* state;                                         // [lanes]
  float *latent, *first_moment, *second_moment, *recorded;  // [lanes, latent_size]
  float* gradient;                                          // [lanes, latent_size]
  float* gram;  // [lanes, gram_size], the accepted latent's; its gradient is first_moment, itself
                // second_moment
  uint32_t* born;  // [lanes, latent_size], the stage's update that reset a moment; 0: none
  float* loss;     // [lanes]
  float *image, *condition;  // [lanes, their size]
  float* truth;              // [lanes, truth_size]
  Moments* batch_moments;    // [1]
  float* outbox;             // [lanes, latent_size]
  float* trace;              // [lanes, trace_length]
  int64_t lanes, latent_size, image_size, condition_size, trace_length;
  int64_t truth_size;  // latent_size, or 0: nobody asks for `nearest`
  int64_t gram_size;   // latent_size^2, or 0: nobody solves normal equations
  double* factors;     // the solve kernel's
  float* pairs;        // [lanes, history, 2, latent_size], of s and y
  double* products;    // [lanes, 2, history], of each pair s y, and what the kernel makes of it
  double* direction;   // the lbfgs kernel's
  int64_t history;     // the longest of any stage, or 0: nobody wants pairs
};

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
