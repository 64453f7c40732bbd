// What the engine minimises: a loss and its gradient for a range of lanes.
#pragma once

#include <cstdint>
#include <memory>

namespace pyinv {

// Lane-major arrays, owned by the engine and fixed for the whole run, so that a runtime can bind
// them once and read and write them in place.
struct LaneBuffers {
  const float* latent;     // [lanes, latent_size]
  const float* image;      // [lanes, image_size], the targets
  const float* condition;  // [lanes, condition_size], or null
  float* loss;             // [lanes]
  float* gradient;         // [lanes, latent_size], d loss / d latent
  int64_t lanes;
};

// An objective at work on one run's buffers.
class Evaluator {
 public:
  virtual ~Evaluator() = default;

  // Writes loss and gradient of lanes [first, first + count).
  virtual void evaluate(int64_t first, int64_t count) = 0;
};

// May serve several runs at once, from several threads.
class Objective {
 public:
  virtual ~Objective() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: takes none

  // The evaluator lives no longer than the objective and the buffers.
  virtual std::unique_ptr<Evaluator> bind(const LaneBuffers& buffers) const = 0;
};

}  // namespace pyinv
