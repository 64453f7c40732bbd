#include <algorithm>

#include "cuda_support.h"
#include "kernels/kernels.h"
#include "lane_rule.h"

namespace pyinv {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMaxBlocksPerPair = 16;

// Swaps this block's part of two rows.
template <class T>
__device__ void swap_rows(T* rows, int64_t size, const LanePair& pair) {
  T* first = rows + pair.first * size;
  T* second = rows + pair.second * size;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += stride) {
    const T value = first[i];
    first[i] = second[i];
    second[i] = value;
  }
}

// Swaps this block's part of two lanes' rows in `count` consecutive arrays.
template <class T>
__device__ void swap_vectors(T* arrays, int64_t count, const LaneArrays& lanes,
                             const LanePair& pair) {
  const int64_t d = lanes.latent_size;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count * d; i += stride) {
    T* component = arrays + (i / d) * lanes.lanes * d + i % d;
    const T value = component[pair.first * d];
    component[pair.first * d] = component[pair.second * d];
    component[pair.second * d] = value;
  }
}

// Block (x, y) swaps a part of pair y.
__global__ void __launch_bounds__(kThreads)
    swap_lanes_kernel(const __grid_constant__ LaneArrays lanes,
                      const __grid_constant__ RowsOfLaunch<LanePair> pairs) {
  const LanePair& pair = pairs.row[blockIdx.y];
  swap_rows(lanes.state, 1, pair);
  swap_rows(lanes.latent, lanes.latent_size, pair);
  swap_rows(lanes.attempt_latent, lanes.latent_size, pair);
  swap_rows(lanes.best_latent, lanes.latent_size, pair);
  swap_rows(lanes.gram, lanes.gram_size, pair);
  swap_vectors(lanes.vectors, lanes.storage.vectors, lanes, pair);
  swap_vectors(lanes.count_vectors, lanes.storage.count_vectors, lanes, pair);
  swap_rows(lanes.doubles, lanes.storage.doubles, pair);
  swap_rows(lanes.image, lanes.image_size, pair);
  swap_rows(lanes.condition, lanes.condition_size, pair);
  swap_rows(lanes.weights, lanes.weights_size, pair);
  swap_rows(lanes.truth, lanes.truth_size, pair);
  swap_rows(lanes.trace, lanes.trace_length, pair);
}

__global__ void __launch_bounds__(kRowsPerLaunch)
    reassign_kernel(const __grid_constant__ LaneArrays lanes,
                    const __grid_constant__ RowsOfLaunch<Reassignment> list) {
  const Reassignment& change = list.row[threadIdx.x];
  lanes.state[change.lane].objective = change.objective;
}

}  // namespace

void swap_lanes_cuda(const LaneArrays& lanes, std::span<const LanePair> pairs, CudaStream stream) {
  const int64_t longest = std::max({lanes.image_size, lanes.condition_size, lanes.trace_length,
                                    lanes.gram_size, lanes.storage.vectors * lanes.latent_size});
  const unsigned width =
      blocks_for(std::min<int64_t>(longest, kMaxBlocksPerPair * kThreads), kThreads);
  launch_rows(pairs, [&](const RowsOfLaunch<LanePair>& some, unsigned count) {
    launch("swap lanes kernel", swap_lanes_kernel, dim3(width, count), kThreads, stream, lanes,
           some);
  });
}

void reassign_cuda(const LaneArrays& lanes, std::span<const Reassignment> reassignments,
                   CudaStream stream) {
  launch_rows(reassignments, [&](const RowsOfLaunch<Reassignment>& some, unsigned count) {
    launch("reassign kernel", reassign_kernel, dim3(1), count, stream, lanes, some);
  });
}

}  // namespace pyinv
