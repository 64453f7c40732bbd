#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "backend.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

class NoEvent : public Event {
 public:
  void record() override {}
  void wait() const override {}
};

class CpuTargetLoader : public TargetLoader {
 public:
  CpuTargetLoader(const LaneArrays& lanes, const Targets& targets)
      : lanes_(lanes), targets_(targets) {}

  void refill(std::span<const Refill> refills) override {
    rows_.clear();
    for (const Refill& refill : refills) {
      const int64_t row = refill.row;
      rows_.push_back(
          {.refill = refill,
           .id = targets_.id[row],
           .image = targets_.image + row * lanes_.image_size,
           .condition =
               lanes_.condition_size ? targets_.condition + row * lanes_.condition_size : nullptr,
           .weights = weights_of(targets_, lanes_, row),
           .initial = targets_.initial ? targets_.initial + row * lanes_.latent_size : nullptr,
           .truth = lanes_.truth_size ? targets_.true_latent + row * lanes_.truth_size : nullptr});
    }
    refill_cpu(lanes_, rows_);
  }

 private:
  const LaneArrays lanes_;
  const Targets targets_;
  std::vector<RefillRows> rows_;
};

// Synchronous: all work is done when a call returns.
class CpuBackend : public Backend {
 public:
  DeviceKind kind() const override { return DeviceKind::cpu; }
  int index() const override { return 0; }
  void* stream() const override { return nullptr; }
  void synchronize() const override {}
  std::shared_ptr<void> exclusive() override { return nullptr; }

  Memory allocate(size_t bytes) override {
    void* memory = std::calloc(1, bytes ? bytes : 1);
    if (!memory) {
      throw OutOfMemory("there is no memory for " + std::to_string(bytes >> 20) +
                        " MiB of lanes; give fewer lanes");
    }
    return Memory(memory, std::free);
  }
  Memory allocate_shared(size_t bytes) override { return allocate(bytes); }
  void upload(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<NoEvent>(); }
  std::unique_ptr<CapturedGraph> capture(const std::function<void()>&) override { return nullptr; }

  int64_t reports_ahead() const override { return 0; }
  int64_t rounded(int64_t count, int64_t) const override { return count; }
  int64_t propose_scratch(SolverKind kind, int64_t latent_size, int64_t) const override {
    return propose_scratch_cpu(kind, latent_size);
  }

  std::unique_ptr<TargetLoader> make_loader(const LaneArrays& lanes, const Targets& targets,
                                            bool) override {
    return std::make_unique<CpuTargetLoader>(lanes, targets);
  }
  void swap_lanes(const LaneArrays& lanes, std::span<const LanePair> pairs) override {
    swap_lanes_cpu(lanes, pairs);
  }
  void reassign(const LaneArrays& lanes, std::span<const Reassignment> list) override {
    reassign_cpu(lanes, list);
  }
  void update_status(const LaneArrays& lanes, int64_t active) override {
    update_status_cpu(lanes, active);
  }
  void batch_moments(const LaneArrays& lanes, int64_t active) override {
    batch_moments_cpu(lanes, active);
  }
  void decide_group(const LaneArrays& lanes, int64_t active) override {
    decide_group_cpu(lanes, active);
  }
  void propose(const LaneArrays& lanes, SolverKind kind, int64_t active) override {
    propose_cpu(lanes, kind, active);
  }
  void step(const LaneArrays& lanes, int64_t active) override { step_cpu(lanes, active); }
  void abandon(const LaneArrays& lanes, int64_t active) override { abandon_cpu(lanes, active); }
  void report(const LaneArrays& lanes, int64_t active, LaneReport* reports) override {
    report_cpu(lanes, active, reports);
  }
};

}  // namespace

std::shared_ptr<Device> cpu_device() {
  static const auto device = std::make_shared<CpuBackend>();
  return device;
}

}  // namespace pyinv
