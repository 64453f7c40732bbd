// How much of a GPU's memory bandwidth does a step use, outside the objective?
//
//   step [LANES] [LATENT_SIZE]
//
// Runs Adam with clipping on an objective that costs nothing, and compares the bytes that a step has
// to move with what a device-to-device copy moves in the same time.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "pyinv/engine.h"

namespace {

// Loss and gradient stay as they are in the buffers: zero.
class Nothing : public pyinv::Objective {
 public:
  Nothing(std::shared_ptr<pyinv::Device> device, int64_t latent_size)
      : device_(std::move(device)), latent_size_(latent_size) {}

  int64_t latent_size() const override { return latent_size_; }
  int64_t image_size() const override { return 1; }
  int64_t condition_size() const override { return 0; }
  std::shared_ptr<pyinv::Device> device() const override { return device_; }

  std::unique_ptr<pyinv::Evaluator> bind(const pyinv::LaneBuffers&) const override {
    struct Bound : pyinv::Evaluator {
      void evaluate(int64_t, int64_t) override {}
      bool capturable() const override { return true; }
    };
    return std::make_unique<Bound>();
  }

 private:
  std::shared_ptr<pyinv::Device> device_;
  int64_t latent_size_;
};

double seconds_of(const pyinv::Objective& objective, int64_t lanes, int64_t steps) {
  const int64_t d = objective.latent_size();
  std::vector<float> images(lanes), latents(lanes * d), losses(lanes);
  std::vector<uint64_t> ids(lanes);
  std::vector<pyinv::Status> status(lanes);
  std::vector<int64_t> made(lanes);
  std::vector<int32_t> attempts(lanes);
  for (int64_t i = 0; i < lanes; ++i) ids[i] = static_cast<uint64_t>(i);
  pyinv::Stage stage;
  stage.constraint = {.kind = pyinv::ConstraintKind::clip};
  stage.max_steps = steps;
  const pyinv::Recipe recipe{.stages = {stage}, .restarts = 0, .keep_best = true};
  const auto summary = pyinv::run({&objective}, {}, recipe,
                                  {.count = lanes, .image = images.data(), .id = ids.data()},
                                  {.seed = 1, .lanes = lanes},
                                  {.latent = latents.data(),
                                   .loss = losses.data(),
                                   .status = status.data(),
                                   .steps = made.data(),
                                   .attempts = attempts.data()});
  return summary.total_seconds;
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Bytes read and written a second.
double copy_bandwidth(size_t bytes) {
  void *from = nullptr, *to = nullptr;
  cudaEvent_t begin, end;
  check(cudaMalloc(&from, bytes));
  check(cudaMalloc(&to, bytes));
  check(cudaMemset(from, 1, bytes));
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  constexpr int kCopies = 20;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
  check(cudaEventRecord(begin));
  for (int i = 0; i < kCopies; ++i) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
  }
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float milliseconds = 0.0f;
  check(cudaEventElapsedTime(&milliseconds, begin, end));
  check(cudaFree(from));
  check(cudaFree(to));
  return 2.0 * static_cast<double>(bytes) * kCopies / (1e-3 * milliseconds);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t lanes = argc > 1 ? std::atoll(argv[1]) : 1 << 20;
  const int64_t size = argc > 2 ? std::atoll(argv[2]) : 128;
  const Nothing objective(pyinv::cuda_device(0), size);
  constexpr int64_t kShort = 200, kLong = 1000;
  seconds_of(objective, lanes, kShort);
  const double few = seconds_of(objective, lanes, kShort);
  const double many = seconds_of(objective, lanes, kLong);
  const double step = (many - few) / (kLong - kShort);
  // Read: latent, gradient (twice: it is checked first), two moments, the reset counts. Written:
  // latent, two moments.
  const double bytes = 4.0 * 9.0 * static_cast<double>(lanes * size);
  const double copy = copy_bandwidth(size_t{1} << 30);
  std::printf(
      "%s: %lld lanes of %lld: %.3f ms a step, %.0f GB/s; a copy moves %.0f GB/s; ratio %.2f\n",
      pyinv::cuda_device_name(0).c_str(), static_cast<long long>(lanes),
      static_cast<long long>(size), 1e3 * step, 1e-9 * bytes / step, 1e-9 * copy,
      bytes / step / copy);
}
