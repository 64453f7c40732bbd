#include <algorithm>

#include "cuda_support.h"
#include "kernels/kernels.h"
#include "solvers/first_order.h"

namespace pyinv {
namespace {

constexpr unsigned kThreads = 256;
// The most blocks per row: long rows (images) need several, and all lanes may be refilled at once.
constexpr int64_t kMaxBlocksPerRow = 16;

// Block (x, y) copies a part of row y.
__global__ void __launch_bounds__(kThreads)
    refill_kernel(const __grid_constant__ LaneArrays lanes,
                  const __grid_constant__ RowsOfLaunch<RefillRows> rows) {
  const RefillRows& row = rows.row[blockIdx.y];
  const RunRule& rule = *lanes.rule;
  const int64_t lane = row.refill.lane;
  const int64_t start = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kThreads;

  if (start == 0) {
    lanes.state[lane] = begin_target(row.id, row.refill.row, first_objective(lanes.stages[0]));
  }
  for (int64_t i = start; i < lanes.image_size; i += stride) {
    lanes.image[lane * lanes.image_size + i] = row.image[i];
  }
  if (row.condition) {
    for (int64_t i = start; i < lanes.condition_size; i += stride) {
      lanes.condition[lane * lanes.condition_size + i] = row.condition[i];
    }
  }
  if (row.weights) {
    for (int64_t i = start; i < lanes.weights_size; i += stride) {
      lanes.weights[lane * lanes.weights_size + i] = row.weights[i];
    }
  }
  if (row.truth) {
    for (int64_t i = start; i < lanes.truth_size; i += stride) {
      lanes.truth[lane * lanes.truth_size + i] = row.truth[i];
    }
  }
  for (int64_t i = start; i < lanes.latent_size; i += stride) {
    const int64_t k = lane * lanes.latent_size + i;
    const float z = within_bounds(
        lanes.stages[0],
        row.initial ? row.initial[i] : first_latent(rule, row.id, static_cast<uint32_t>(i)));
    lanes.latent[k] = lanes.attempt_latent[k] = z;
    if (!lanes.stages[0].makes_trials) {
      const FirstOrderRows rows = first_order_rows(lanes, k);
      *rows.m = *rows.v = 0.0f;
      *rows.reset_step = 0;
    }
  }
  for (int64_t i = start; i < lanes.trace_length; i += stride) {
    lanes.trace[lane * lanes.trace_length + i] = NAN;
  }
}

}  // namespace

void refill_cuda(const LaneArrays& lanes, std::span<const RefillRows> rows, CudaStream stream) {
  const int64_t longest =
      std::max({lanes.image_size, lanes.condition_size, lanes.latent_size, lanes.trace_length});
  const unsigned width =
      blocks_for(std::min<int64_t>(longest, kMaxBlocksPerRow * kThreads), kThreads);
  launch_rows(rows, [&](const RowsOfLaunch<RefillRows>& some, unsigned count) {
    launch("refill kernel", refill_kernel, dim3(width, count), kThreads, stream, lanes, some);
  });
}

}  // namespace pyinv
