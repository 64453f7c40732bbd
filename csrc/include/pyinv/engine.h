// The inversion loop: a fixed number of lanes, refilled from a queue of targets as they finish.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/objective.h"
#include "pyinv/recipe.h"

namespace pyinv {

enum class Status : uint8_t { converged, stalled, step_limit, non_finite, cancelled };

// The caller owns every array; they must outlive the run.
struct Targets {
  int64_t count = 0;
  const float* image = nullptr;      // [count, image_size]
  const float* initial = nullptr;    // [count, latent_size], or null: drawn from the prior
  const float* condition = nullptr;  // [count, condition_size], or null
  // [count, latent_size], or null: the latents behind the images, where they are known
  const float* true_latent = nullptr;
  const uint64_t* id = nullptr;  // [count], each below 2^48: what random draws depend on
};

struct Results {
  float* latent = nullptr;              // [count, latent_size]
  float* loss = nullptr;                // [count]
  Status* status = nullptr;             // [count]
  int64_t* steps = nullptr;             // [count], over all attempts
  int32_t* attempts = nullptr;          // [count]
  float* trace = nullptr;               // [count, trace_length], or null
  int64_t* normal_equations = nullptr;  // [count], evaluations of them over all attempts, or null
  // [count], or null; needs Targets::true_latent. The lowest mean squared error over all latents
  // that were evaluated, from the first one on, through all stages and attempts; NaN where none was
  // evaluated or all errors are beyond a float.
  float* min_latent_error = nullptr;
};

struct Progress {
  int64_t finished = 0, targets = 0, active = 0;
  int64_t evaluations = 0;  // image evaluations so far, those of normal equations among them
  double mean_loss = 0.0;   // of the active lanes whose loss is finite; NaN if there is none
};

struct RunOptions {
  uint64_t seed = 0;
  int64_t lanes = 64;
  bool coupled = false;     // the objective itself ties the lanes of a batch together
  int64_t trace_every = 0;  // 0: no trace
  // Steps between two polls of the lanes' status; lanes that have finished wait for one. 0: one on
  // the CPU, about 10 ms' worth on a GPU. A run that solves normal equations polls after every
  // step, whatever this says.
  int64_t poll_every = 0;
  std::function<bool(const Progress&)> keep_going;  // called at every poll; false cancels
};

struct RunSummary {
  bool cancelled = false;
  int64_t evaluations = 0;
  double total_seconds = 0.0;
  double objective_seconds = 0.0;  // on the CPU; a GPU's work cannot be told apart from here
};

// Entries of one target's trace.
PYINV_API int64_t trace_length(const Recipe& recipe, int64_t trace_every);

// Writes `size` components of the prior's draw for (seed, target, restart).
PYINV_API void draw_initial(const Prior& prior, uint64_t seed, uint64_t target, uint32_t restart,
                            int64_t size, float* latent);

// Inverts every target. Stage::objective and, with a solver that wants them,
// Stage::normal_equations index `objectives`, which share their sizes.
// Throws what an objective or keep_going throws, OutOfMemory where so many lanes don't fit. The
// results of targets finished before that are in place; the others are marked as cancelled.
PYINV_API RunSummary run(const std::vector<const Objective*>& objectives, const Prior& prior,
                         const Recipe& recipe, const Targets& targets, const RunOptions& options,
                         const Results& results);

}  // namespace pyinv
