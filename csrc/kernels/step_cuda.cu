#include "act_rule.h"
#include "cuda_support.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

constexpr int64_t kThreads = 256;

// A thread does `kWidth` adjacent components of a lane; adjacent threads do adjacent components.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ LaneArrays lanes, uint64_t threads) {
  const uint64_t thread = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread >= threads) return;
  const uint64_t threads_per_lane = static_cast<uint64_t>(lanes.latent_size) / kWidth;
  const uint64_t lane = thread / threads_per_lane;
  act<kWidth>(lanes, static_cast<int64_t>(lane),
              static_cast<int64_t>(thread - lane * threads_per_lane) * kWidth);
}

template <int kWidth>
void launch_step(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  const int64_t threads = active * (lanes.latent_size / kWidth);
  launch("step kernel", step_kernel<kWidth>, dim3(blocks_for(threads, kThreads)),
         static_cast<unsigned>(kThreads), stream, lanes, static_cast<uint64_t>(threads));
}

}  // namespace

void step_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  if (active == 0) return;
  // 16 bytes per access, which saturates the bus with the fewest threads, if rows are aligned.
  if (lanes.latent_size % 4 == 0) {
    launch_step<4>(lanes, active, stream);
  } else {
    launch_step<1>(lanes, active, stream);
  }
}

cudaError_t kernels_run_here() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, step_kernel<1>);
}

}  // namespace pyinv
