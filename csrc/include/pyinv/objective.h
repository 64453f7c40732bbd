// The function that the engine minimises: a loss and its gradient for a range of lanes, and the
// normal equations of a least-squares loss.
#pragma once

#include <cstdint>
#include <memory>

#include "pyinv/api.h"
#include "pyinv/device.h"

namespace pyinv {

// Lane-major arrays on the objective's device. The engine owns them and keeps them in place for the
// whole run, so that a runtime can bind them once.
struct LaneBuffers {
  const float* latent;     // [lanes, latent_size]
  const float* image;      // [lanes, image_size], the targets
  const float* condition;  // [lanes, condition_size], or null
  const float* weights;    // [lanes, image_size], or null
  float* loss;             // [lanes]
  float* gradient;         // [lanes, latent_size], d loss / d latent
  float* gram;             // [lanes, latent_size, latent_size], both triangles; or null
  int64_t lanes;
};

// An objective bound to one run's buffers.
class PYINV_API Evaluator {
 public:
  virtual ~Evaluator() = default;

  // Writes loss and gradient, and gram if the objective has one, for lanes [first, first + count)
  // only. On a GPU it puts the work into the device's stream and does not wait for it.
  virtual void evaluate(int64_t first, int64_t count) = 0;

  // Ends an evaluate() that is under way in another thread, and all later ones, by an exception.
  // Does nothing where the runtime cannot; the evaluation is then finished.
  virtual void interrupt() noexcept {}

  // Whether evaluate() of a range seen before may be captured in a CUDA graph. It then does not
  // allocate device memory, does not wait, and uses the same memory in each call.
  virtual bool capturable() const { return false; }
};

// May serve several runs at once, from several threads.
class PYINV_API Objective {
 public:
  virtual ~Objective() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: no condition
  // Whether the loss is a weighted mean over the target's values, with weights per target.
  virtual bool takes_weights() const { return false; }
  // Whether these are normal equations, 2/P J^T J delta = -gradient, which also compute the matrix
  // on the left, the gram.
  virtual bool has_gram() const { return false; }
  virtual std::shared_ptr<Device> device() const { return cpu_device(); }

  // The objective and the buffers must outlive the evaluator.
  virtual std::unique_ptr<Evaluator> bind(const LaneBuffers& buffers) const = 0;
};

// Options for running a function in a runtime.
struct RuntimeOptions {
  int threads = 1;  // CPU threads, at least 1
  std::shared_ptr<Device> device = cpu_device();
  bool tf32 = false;         // let a GPU round inputs of matrix products to 10 bits
  int64_t most_at_once = 0;  // lanes per evaluation, to limit memory; 0: all
};

}  // namespace pyinv
