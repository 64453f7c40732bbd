// The inversion loop: a fixed number of lanes, refilled from a queue of targets as they finish.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/cancellation.h"
#include "pyinv/objective.h"
#include "pyinv/recipe.h"

namespace pyinv {

// How a target ended.
enum class Status : uint8_t {
  converged_tolerance,   // the loss reached the stage's loss_tolerance
  converged_plateau,     // the loss stopped changing: no further progress
  step_limit,            // all steps used; over the last tenth the loss fell by 1 % or less
  step_limit_improving,  // all steps used; over the last tenth the loss fell by more than 1 %
  non_finite,            // the loss or gradient became NaN or infinite
  cancelled,             // the run ended before this target did
};

// The caller owns every array; they must outlive the run.
struct Targets {
  int64_t count = 0;
  const float* image = nullptr;      // [count, image_size]
  const float* initial = nullptr;    // [count, latent_size]; null: drawn from the prior
  const float* condition = nullptr;  // [count, condition_size], or null
  // [count, image_size], for objectives that take weights: each at least 0, and each target's sum
  // above 0. Null: all 1.
  const float* weights = nullptr;
  bool shared_weights = false;  // `weights` is [image_size], the same for all targets
  // [count, latent_size], or null: the latents that generated the images, if they are known
  const float* true_latent = nullptr;
  const uint64_t* id = nullptr;  // [count], each below 2^48; seeds the target's draws
};

struct Results {
  float* latent = nullptr;              // [count, latent_size]
  float* loss = nullptr;                // [count]
  Status* status = nullptr;             // [count]
  int64_t* steps = nullptr;             // [count], over all attempts
  int32_t* attempts = nullptr;          // [count]
  float* trace = nullptr;               // [count, trace_length], or null
  int64_t* normal_equations = nullptr;  // [count], evaluations over all attempts; or null
  // [count], or null; needs Targets::true_latent. The lowest mean squared error of all evaluated
  // latents, over all stages and attempts. NaN if none was evaluated, or if all errors overflow a
  // float.
  float* min_latent_error = nullptr;
};

// Targets that arrive while a run is going on. The arrays of Targets and Results are then a pool of
// `count` rows: the queue fills a row, hands it to the run, and may fill it again once it is
// finished. The run calls these functions from its own thread.
class PYINV_API Queue {
 public:
  static constexpr int64_t kNone = -1;  // no target now
  static constexpr int64_t kEnd = -2;   // no more targets

  virtual ~Queue() = default;
  // Returns the row of the next target, kNone or kEnd. If `wait`, the run has nothing else to do,
  // and the call may block for up to about 20 ms, after which the run calls keep_going.
  virtual int64_t next(bool wait) = 0;
  // Whether the target of this row, which is in a lane, is no longer wanted. The run asks at every
  // poll, and finishes the row as cancelled, without a latent.
  virtual bool dropped(int64_t) { return false; }
  // The row's results are written, and the run no longer reads its target.
  virtual void finish(int64_t row) = 0;
};

struct Progress {
  int64_t finished = 0, targets = 0, active = 0;  // of a queue, `targets` are those taken so far
  int64_t evaluations = 0;  // image evaluations so far, including normal equations
  double mean_loss = 0.0;   // over active lanes with a finite loss; NaN if there are none
};

struct RunOptions {
  uint64_t seed = 0;
  int64_t lanes = 64;
  bool coupled = false;     // the objective makes the lanes of a batch depend on each other
  int64_t trace_every = 0;  // 0: no trace
  // Steps between polls of the lanes' status. Finished lanes wait for a poll. 0: every step on the
  // CPU, about every 10 ms on a GPU. A run that solves normal equations always polls after every
  // step.
  int64_t poll_every = 0;
  // [latent_size, latent_size], symmetric and positive definite, of any scale: for L-BFGS. Null:
  // the identity. Bundle::preconditioner() has a generator's.
  const float* preconditioner = nullptr;
  // Null: the targets are the rows of the arrays. Not for coupled runs. A run that is cancelled
  // finishes the targets in its lanes with their results so far; an exception leaves them.
  Queue* queue = nullptr;
  std::function<bool(const Progress&)> keep_going;  // called at every poll; false cancels
  // Null: none. Cancels the run from another thread, even within a long evaluation.
  Cancellation* cancellation = nullptr;
};

struct RunSummary {
  bool cancelled = false;
  int64_t evaluations = 0;
  double total_seconds = 0.0;
  double objective_seconds = 0.0;  // CPU only: the host cannot time a GPU's objectives
};

// The number of entries in a target's trace.
PYINV_API int64_t trace_length(const Recipe& recipe, int64_t trace_every);

// Writes the first `size` components of the prior's draw for (seed, target, restart).
PYINV_API void draw_initial(const Prior& prior, uint64_t seed, uint64_t target, uint32_t restart,
                            int64_t size, float* latent);

// Inverts every target. Stage::objective and, for solvers that use them, Stage::normal_equations
// are indices into `objectives`, which must have equal sizes.
// Rethrows exceptions of objectives and keep_going; throws OutOfMemory if the lanes do not fit. The
// results of targets that finished before an exception are valid; the others are marked cancelled.
PYINV_API RunSummary run(const std::vector<const Objective*>& objectives, const Prior& prior,
                         const Recipe& recipe, const Targets& targets, const RunOptions& options,
                         const Results& results);

}  // namespace pyinv
