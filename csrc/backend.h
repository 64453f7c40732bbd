// A device as the engine uses it: memory, the kernels, and events in the stream. Calls return
// before the work is done, unless they say otherwise.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "lanes.h"
#include "pyinv/device.h"
#include "pyinv/engine.h"

namespace pyinv {

// A place in the stream.
class Event {
 public:
  virtual ~Event() = default;
  virtual void record() = 0;      // here: after all work put into the stream so far
  virtual void wait() const = 0;  // until that work is done
};

// Work of the stream, captured so that it can be put into it again at the cost of one launch.
class CapturedGraph {
 public:
  virtual ~CapturedGraph() = default;
  virtual void launch() const = 0;
};

// Brings targets to lanes. Rows must be asked for in rising order, each once.
class TargetLoader {
 public:
  virtual ~TargetLoader() = default;
  virtual void refill(std::span<const Refill> refills) = 0;
};

// Held while a stream's work is captured, and by whoever calls what CUDA forbids meanwhile to every
// thread, such as waiting for a whole GPU.
inline std::mutex capture_mutex;

class Backend : public Device {
 public:
  using Memory = std::unique_ptr<void, std::function<void(void*)>>;

  // Zeroed memory of the device. Throws OutOfMemory.
  virtual Memory allocate(size_t bytes) = 0;
  // Zeroed memory of the host that the device reads and writes as well.
  virtual Memory allocate_shared(size_t bytes) = 0;
  // Waits until the copy is made.
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual std::unique_ptr<Event> make_event() = 0;
  // Runs `work`, which puts work into the stream, and keeps that instead of doing it. Null where
  // this device or the work does not allow it.
  virtual std::unique_ptr<CapturedGraph> capture(const std::function<void()>& work) = 0;
  // How far the host lets the device run ahead of what it knows, in reports.
  virtual int64_t reports_ahead() const = 0;
  // How many lanes to evaluate when `count` have to be, of at most `limit`: runtimes prepare
  // themselves for every batch size anew, so a GPU sees few of them.
  virtual int64_t rounded(int64_t count, int64_t limit) const = 0;
  // Values in LaneArrays::scratch that propose() wants.
  virtual int64_t propose_scratch(SolverKind kind, int64_t latent_size, int64_t lanes) const = 0;

  // The kernels of kernels/kernels.h.
  virtual std::unique_ptr<TargetLoader> make_loader(const LaneArrays& lanes,
                                                    const Targets& targets) = 0;
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
