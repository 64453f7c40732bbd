// A run over targets that arrive one by one.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/engine.h"
#include "pyinv/objective.h"
#include "pyinv/recipe.h"

namespace pyinv {

struct StreamOptions {
  uint64_t seed = 0;
  int64_t lanes = 64;  // targets at a time
  // Targets that were put and not taken yet: bounds the memory, and holds back a source that is
  // faster than the consumer. At least 1; lanes that have no row stay empty.
  int64_t rows = 256;
  bool has_initial = false;               // whether every target comes with an initial latent
  const float* preconditioner = nullptr;  // as in RunOptions; copied
};

struct StreamResult {
  int64_t number = 0;  // of the target, from 0 in the order of put()
  Status status = Status::cancelled;
  float loss = 0.0f;
  int64_t steps = 0, normal_equations = 0;
  int32_t attempts = 0;
  std::vector<float> latent;  // NaN if the target was cancelled before it had one
};

// Runs on a thread of its own. Targets enter lanes in the order of put(), and results are taken in
// the order in which targets finish. All functions may be called from any thread. The objectives
// must outlive the stream. Not for coupled targets.
class PYINV_API Stream {
 public:
  // Throws std::invalid_argument as run() does.
  Stream(std::vector<const Objective*> objectives, const Prior& prior, const Recipe& recipe,
         const StreamOptions& options);
  ~Stream();  // stops
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Copies the first targets for which there is room, and returns their number; waits for room for
  // up to `wait`. 0 also if the stream was stopped or has failed. `targets` needs what run()
  // needs, and `initial` if the options say so; not `true_latent`.
  int64_t put(const Targets& targets, std::chrono::milliseconds wait);
  // There are no more targets.
  void end();
  // Returns the targets that have finished, and waits for the first for up to `wait`; nullopt once
  // all were returned after end() or stop(). Rethrows the run's exception once all were returned.
  std::optional<std::vector<StreamResult>> take(std::chrono::milliseconds wait);
  // Cancels these targets within a step: they finish as cancelled. Ignores numbers of targets that
  // have finished.
  void cancel(std::span<const int64_t> numbers);
  // Ends the run within a step, and waits for it. What has finished can still be taken, and what is
  // in lanes with its results so far, as cancelled.
  void stop();

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace pyinv
