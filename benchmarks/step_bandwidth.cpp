// Compares the step kernel's speed with a copy on the same GPU, in GB/s. To build and run it:
//   cmake -S tests/cuda -B build/gpu -DPYINV_EMULATED=OFF && cmake --build build/gpu
//   build/gpu/step_bandwidth [latents] [latent size]
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "backend.h"
#include "cuda_support.h"
#include "kernels/kernels.h"
#include "solvers/adam.h"

namespace {

using namespace pyinv;

constexpr int kRuns = 50;

// The time of one run, after a warm-up run.
double seconds(cudaStream_t stream, const std::function<void()>& work) {
  cudaEvent_t start, stop;
  check_cuda(cudaEventCreate(&start), "cudaEventCreate");
  check_cuda(cudaEventCreate(&stop), "cudaEventCreate");
  work();
  cudaEventRecord(start, stream);
  for (int i = 0; i < kRuns; ++i) work();
  cudaEventRecord(stop, stream);
  check_cuda(cudaEventSynchronize(stop), "cudaEventSynchronize");
  float milliseconds = 0.0f;
  cudaEventElapsedTime(&milliseconds, start, stop);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return milliseconds / 1e3 / kRuns;
}

}  // namespace

int main(int count, char** values) {
  const int64_t lanes = count > 1 ? std::atoll(values[1]) : 1 << 20;
  const int64_t d = count > 2 ? std::atoll(values[2]) : 100;
  const std::shared_ptr<Device> device = cuda_device(0);
  auto& gpu = dynamic_cast<Backend&>(*device);
  const auto stream = static_cast<cudaStream_t>(gpu.stream());
  std::vector<Backend::Memory> memory;
  const auto allocate = [&]<class T>(T*& array, int64_t size) {
    memory.push_back(gpu.allocate(static_cast<size_t>(size) * sizeof(T)));
    array = static_cast<T*>(memory.back().get());
  };

  LaneArrays arrays{.lanes = lanes, .latent_size = d};
  for (float** array : {&arrays.latent, &arrays.attempt_latent, &arrays.gradient}) {
    allocate(*array, lanes * d);
  }
  arrays.storage = Adam::storage({});
  allocate(arrays.vectors, lanes * d * arrays.storage.vectors);
  allocate(arrays.count_vectors, lanes * d * arrays.storage.count_vectors);
  const auto upload = [&]<class T>(const T*& array, const std::vector<T>& host) {
    T* target = nullptr;
    allocate(target, static_cast<int64_t>(host.size()));
    gpu.upload(target, host.data(), host.size() * sizeof(T));
    array = target;
  };
  std::vector<StageRule> stages(1);
  stages[0].step.solver = SolverKind::adam;
  Adam::resolve({}, stages[0].step);
  upload(arrays.stages, stages);
  upload(arrays.rule, std::vector<RunRule>(1));
  std::vector<LaneState> states(static_cast<size_t>(lanes));
  for (LaneState& state : states) {
    state.action = kRecord | kStep;  // the actions of an ordinary step
    state.step.step_size = state.step.learning_rate = 0.01f;
    state.step.second_root = 1.0f;
  }
  const LaneState* state = nullptr;
  upload(state, states);
  arrays.state = const_cast<LaneState*>(state);

  // Per component: latent, gradient, two moments and the last reset are read; latent, moments and
  // attempt_latent are written.
  const double bytes = 36.0 * static_cast<double>(lanes * d);
  const size_t copied = static_cast<size_t>(lanes * d) * sizeof(float);
  const double copy = 2.0 * static_cast<double>(copied) / seconds(stream, [&] {
                        check_cuda(cudaMemcpyAsync(arrays.attempt_latent, arrays.latent, copied,
                                                   cudaMemcpyDeviceToDevice, stream),
                                   "cudaMemcpyAsync");
                      });
  std::printf("%s, %lld x %lld\ncopy %8.1f GB/s\n", cuda_device_name(0).c_str(),
              static_cast<long long>(lanes), static_cast<long long>(d), copy / 1e9);
  const char* names[] = {"none",
                         "clip",
                         "stochastic clip",
                         "hard cutoff",
                         "logistic cutoff",
                         "truncated normal cutoff"};
  for (int kind = 0; kind < 6; ++kind) {
    Constraint& constraint = stages[0].step.constraint;
    constraint = {
        .kind = static_cast<ConstraintKind>(kind), .a = kind == 4 ? 6.0f : 2.5f, .b = 2.5f};
    stages[0].step.inverse_horizon = 1e-3f;
    gpu.upload(const_cast<StageRule*>(arrays.stages), stages.data(), sizeof(StageRule));
    const double speed = bytes / seconds(stream, [&] { step_cuda(arrays, lanes, stream); });
    std::printf("step %8.1f GB/s, %3.0f %% of the copy, %s\n", speed / 1e9, 100.0 * speed / copy,
                names[kind]);
  }
}
