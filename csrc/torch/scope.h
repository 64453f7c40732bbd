// torch's state during pyinv's calls.
#pragma once

#include <ATen/Context.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include <optional>

#include "pyinv/objective.h"

namespace pyinv::torchscript {

c10::Device to_torch(const Device& device);

// The number of threads that operators called from this thread use.
class ThreadsScope {
 public:
  explicit ThreadsScope(int threads);
  ~ThreadsScope();
  ThreadsScope(const ThreadsScope&) = delete;
  ThreadsScope& operator=(const ThreadsScope&) = delete;

 private:
  int threads_, before_;
};

// TF32 is a setting of the whole process. Calls with the same setting run concurrently; calls with
// the other setting wait until these have launched their kernels.
class Tf32Scope {
 public:
  explicit Tf32Scope(bool allowed);
  ~Tf32Scope();
  Tf32Scope(const Tf32Scope&) = delete;
  Tf32Scope& operator=(const Tf32Scope&) = delete;
};

// Disables gradients and warnings, and sets the options' device, stream, threads and precision. At
// the end it restores the previous state, for the process's other uses of torch.
class CallScope {
 public:
  explicit CallScope(const RuntimeOptions& options);

 private:
  struct Silence : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };

  std::shared_ptr<void> exclusive_;  // first, so that it is released last
  Silence silence_;
  c10::WarningUtils::WarningHandlerGuard warnings_{&silence_};
  c10::InferenceMode no_gradients_;
  std::optional<ThreadsScope> threads_;
  std::optional<c10::StreamGuard> stream_;
  std::optional<Tf32Scope> precision_;
};

}  // namespace pyinv::torchscript
