// What the engine minimises: a loss and its gradient for a range of lanes, and the normal equations
// of a least-squares loss.
#pragma once

#include <cstdint>
#include <memory>

#include "pyinv/api.h"
#include "pyinv/device.h"

namespace pyinv {

// Lane-major arrays, owned by the engine and fixed for the whole run, so that a runtime can bind
// them once and read and write them in place. They live on the objective's device.
struct LaneBuffers {
  const float* latent;     // [lanes, latent_size]
  const float* image;      // [lanes, image_size], the targets
  const float* condition;  // [lanes, condition_size], or null
  float* loss;             // [lanes]
  float* gradient;         // [lanes, latent_size], d loss / d latent
  float* gram;             // [lanes, latent_size, latent_size], symmetric, all of it read; or null
  int64_t lanes;
};

// An objective at work on one run's buffers.
class PYINV_API Evaluator {
 public:
  virtual ~Evaluator() = default;

  // Writes loss and gradient, and the gram of an objective that has one, of lanes
  // [first, first + count) and of no other. On a GPU it only puts the work into the device's
  // stream, and the host does not wait for it.
  virtual void evaluate(int64_t first, int64_t count) = 0;

  // Whether an evaluate() of a range seen before may be recorded into a CUDA graph: it then
  // allocates nothing on the device, waits for nothing and uses the same memory each time.
  virtual bool capturable() const { return false; }
};

// May serve several runs at once, from several threads.
class PYINV_API Objective {
 public:
  virtual ~Objective() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: takes none
  // Whether these are normal equations, 2/P J^T J delta = -gradient: beside loss and gradient they
  // give the matrix on the left, the gram.
  virtual bool has_gram() const { return false; }
  virtual std::shared_ptr<Device> device() const { return cpu_device(); }

  // The evaluator lives no longer than the objective and the buffers.
  virtual std::unique_ptr<Evaluator> bind(const LaneBuffers& buffers) const = 0;
};

// How a runtime runs a function.
struct RuntimeOptions {
  int threads = 1;  // on the CPU, at least 1
  std::shared_ptr<Device> device = cpu_device();
  bool tf32 = false;         // let a GPU round matrix products' inputs to 10 bits of mantissa
  int64_t most_at_once = 0;  // lanes that an evaluation takes at once, for want of memory; 0: all
};

}  // namespace pyinv
