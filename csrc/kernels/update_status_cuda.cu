#include <algorithm>

#include "cuda_support.h"
#include "decide_rule.h"
#include "kernels/block_sum.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

constexpr unsigned kMaxThreads = 256;  // of a block that works on one lane; a power of two
constexpr unsigned kThreads = 128;     // of a block with one lane per thread

__device__ int64_t lane_of_thread() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

__device__ Moments moments_of(const float* values, int64_t count, double* shared) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += values[i];
  const double mean = block_sum(sum, shared) / static_cast<double>(count);
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    squares += (values[i] - mean) * (values[i] - mean);
  }
  return {mean, sqrt(block_sum(squares, shared) / static_cast<double>(count))};
}

__device__ double mean_squared_difference(const float* a, const float* b, int64_t count,
                                          double* shared) {
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const double difference = double{a[i]} - b[i];
    squares += difference * difference;
  }
  return block_sum(squares, shared) / static_cast<double>(count);
}

// One block per lane. The threads share the work on its rows; the first thread runs the rule.
__global__ void __launch_bounds__(kMaxThreads)
    update_status_kernel(const __grid_constant__ LaneArrays lanes) {
  __shared__ double shared[kMaxThreads];
  const int64_t i = blockIdx.x;
  const int64_t d = lanes.latent_size;
  const RunRule& rule = *lanes.rule;
  LaneState& lane = lanes.state[i];
  const StageRule& stage = lanes.stages[lane.stage];
  if (!at_work(lanes.stages, lane)) {
    if (threadIdx.x == 0) lane.action = 0;
    return;
  }
  float* trace = lanes.trace_length ? lanes.trace + i * lanes.trace_length : nullptr;
  if (trace && lane.attempt_steps == 0) {
    for (int64_t k = threadIdx.x; k < lanes.trace_length; k += blockDim.x) trace[k] = NAN;
  }
  bool finite = true;
  for (int64_t k = threadIdx.x; k < d; k += blockDim.x) {
    finite &= fabsf(lanes.gradient[i * d + k]) <= 3.402823466e38f;
  }
  if (at_normal_equations(stage, lane)) {
    const float* gram = lanes.gram + i * lanes.gram_size;
    for (int64_t k = threadIdx.x; k < lanes.gram_size; k += blockDim.x) {
      finite &= fabsf(gram[k]) <= 3.402823466e38f;
    }
  }
  Moments moments = {0.0, 0.0};
  const bool by_moments = needs_moments(rule, stage);
  if (by_moments) moments = moments_of(lanes.latent + i * d, d, shared);
  double error = 0.0;
  if (lanes.truth_size) {
    error = mean_squared_difference(lanes.latent + i * d, lanes.truth + i * d, d, shared);
  }
  // The state changes after this: all threads have read it and cleared their part of the trace.
  finite = __syncthreads_and(finite);
  if (threadIdx.x > 0) return;
  if (by_moments) lane.moments = moments;
  if (lanes.truth_size) update_nearest(error, lane);
  take_in(rule, stage, lanes.loss[i], finite, trace, lane);
  if (!rule.coupled) decide(rule, stage, lanes.loss[i], lane);
}

// Launched as one block, so that every lane gets the votes of all lanes.
__global__ void __launch_bounds__(kMaxThreads)
    decide_group_kernel(const __grid_constant__ LaneArrays lanes, int64_t active) {
  if (!at_work(lanes.stages, lanes.state[0])) return;
  const RunRule& rule = *lanes.rule;
  GroupVotes votes{true, false, false};
  for (int64_t i = threadIdx.x; i < active; i += blockDim.x) {
    votes.join(vote(rule, lanes.state[i]));
  }
  votes.all_met = __syncthreads_and(votes.all_met);
  votes.any_left = __syncthreads_or(votes.any_left);
  votes.any_retry = __syncthreads_or(votes.any_retry);
  for (int64_t i = threadIdx.x; i < active; i += blockDim.x) {
    LaneState& lane = lanes.state[i];
    decide_in_group(rule, lanes.stages[lane.stage], votes, *lanes.batch_moments, lanes.loss[i],
                    lane);
  }
}

__global__ void __launch_bounds__(kThreads)
    abandon_kernel(const __grid_constant__ LaneArrays lanes, int64_t active) {
  const int64_t i = lane_of_thread();
  if (i < active) abandon(lanes.state[i]);
}

__global__ void __launch_bounds__(kThreads)
    report_kernel(const __grid_constant__ LaneArrays lanes, int64_t active, LaneReport* reports) {
  const int64_t i = lane_of_thread();
  if (i < active) reports[i] = report(lanes.stages, lanes.state[i], lanes.loss[i]);
}

}  // namespace

void update_status_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  if (active == 0) return;
  launch("update status kernel", update_status_kernel, dim3(blocks_for(active, 1)),
         threads_for(lanes.latent_size, kMaxThreads), stream, lanes);
}

void decide_group_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  if (active == 0) return;
  launch("group kernel", decide_group_kernel, dim3(1), threads_for(active, kMaxThreads), stream,
         lanes, active);
}

void abandon_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  if (active == 0) return;
  launch("abandon kernel", abandon_kernel, dim3(blocks_for(active, kThreads)), kThreads, stream,
         lanes, active);
}

void report_cuda(const LaneArrays& lanes, int64_t active, LaneReport* reports, CudaStream stream) {
  if (active == 0) return;
  launch("report kernel", report_kernel, dim3(blocks_for(active, kThreads)), kThreads, stream,
         lanes, active, reports);
}

}  // namespace pyinv
