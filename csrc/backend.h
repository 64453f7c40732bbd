// The engine's interface to a device: memory, kernels, and events in the stream. Calls are
// asynchronous unless noted otherwise.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "lanes.h"
#include "pyinv/device.h"
#include "pyinv/engine.h"

namespace pyinv {

// A point in the stream.
class Event {
 public:
  virtual ~Event() = default;
  virtual void record() = 0;      // after all work put into the stream so far
  virtual void wait() const = 0;  // blocks until that work is done
};

// Captured work, which can be put into the stream again at the cost of one launch.
class CapturedGraph {
 public:
  virtual ~CapturedGraph() = default;
  virtual void launch() const = 0;
};

// A target's weights; null if the objectives take none.
inline const float* weights_of(const Targets& targets, const LaneArrays& lanes, int64_t row) {
  if (!lanes.weights_size) return nullptr;
  return targets.weights + (targets.shared_weights ? 0 : row * lanes.weights_size);
}

// Loads targets into lanes. Rows must be requested in increasing order, each once.
class TargetLoader {
 public:
  virtual ~TargetLoader() = default;
  virtual void refill(std::span<const Refill> refills) = 0;
};

// Held during capture, and around CUDA calls that no thread may make during a capture, such as
// waiting for a whole GPU.
inline std::mutex capture_mutex;

class Backend : public Device {
 public:
  using Memory = std::unique_ptr<void, std::function<void(void*)>>;

  // Allocates zeroed device memory. Throws OutOfMemory.
  virtual Memory allocate(size_t bytes) = 0;
  // Allocates zeroed host memory that the device can also read and write.
  virtual Memory allocate_shared(size_t bytes) = 0;
  // Returns once the copy is done.
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual std::unique_ptr<Event> make_event() = 0;
  // Calls `work` and captures what it puts into the stream, without executing it. Null if the
  // device or the work does not allow capture.
  virtual std::unique_ptr<CapturedGraph> capture(const std::function<void()>& work) = 0;
  // How many reports the device may run ahead of the host.
  virtual int64_t reports_ahead() const = 0;
  // Rounds the number of lanes to evaluate up from `count`, to at most `limit`. Runtimes prepare
  // each batch size separately, so a GPU uses only a few sizes.
  virtual int64_t rounded(int64_t count, int64_t limit) const = 0;
  // The number of values that propose() needs in LaneArrays::scratch.
  virtual int64_t propose_scratch(SolverKind kind, int64_t latent_size, int64_t lanes) const = 0;

  // The kernels, see kernels/kernels.h.
  // With a queue, rows come in any order and are written only shortly before.
  virtual std::unique_ptr<TargetLoader> make_loader(const LaneArrays& lanes, const Targets& targets,
                                                    bool queue) = 0;
  virtual void swap_lanes(const LaneArrays& lanes, std::span<const LanePair> pairs) = 0;
  virtual void reassign(const LaneArrays& lanes, std::span<const Reassignment> list) = 0;
  virtual void update_status(const LaneArrays& lanes, int64_t active) = 0;
  virtual void batch_moments(const LaneArrays& lanes, int64_t active) = 0;
  virtual void decide_group(const LaneArrays& lanes, int64_t active) = 0;
  virtual void propose(const LaneArrays& lanes, SolverKind kind, int64_t active) = 0;
  virtual void step(const LaneArrays& lanes, int64_t active) = 0;
  virtual void abandon(const LaneArrays& lanes, int64_t active) = 0;
  virtual void report(const LaneArrays& lanes, int64_t active, LaneReport* reports) = 0;
};

}  // namespace pyinv
