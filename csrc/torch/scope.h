// The state of torch in which our calls run.
#pragma once

#include <ATen/Context.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Exception.h>

#include <optional>

#include "pyinv/objective.h"

namespace pyinv::torchscript {

c10::Device to_torch(const Device& device);

// The calling thread's threads within an operator.
class ThreadsScope {
 public:
  explicit ThreadsScope(int threads);
  ~ThreadsScope();
  ThreadsScope(const ThreadsScope&) = delete;
  ThreadsScope& operator=(const ThreadsScope&) = delete;

 private:
  int threads_, before_;
};

// TF32 is a switch of the whole process: calls that want it alike run side by side, and those that
// want it otherwise wait until they have launched their kernels.
class Tf32Scope {
 public:
  explicit Tf32Scope(bool allowed);
  ~Tf32Scope();
  Tf32Scope(const Tf32Scope&) = delete;
  Tf32Scope& operator=(const Tf32Scope&) = delete;
};

// No gradients, no warnings, and the options' device, stream, threads and precision; everything as
// it was before at the end, for what else the process does with torch.
class CallScope {
 public:
  explicit CallScope(const RuntimeOptions& options);

 private:
  struct Silence : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };

  std::shared_ptr<void> exclusive_;  // first: the last to be given back
  Silence silence_;
  c10::WarningUtils::WarningHandlerGuard warnings_{&silence_};
  c10::InferenceMode no_gradients_;
  std::optional<ThreadsScope> threads_;
  std::optional<c10::StreamGuard> stream_;
  std::optional<Tf32Scope> precision_;
};

}  // namespace pyinv::torchscript
