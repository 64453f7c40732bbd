// The kernels: loops over the lanes [0, active) of a run, for the CPU (<kernel>_cpu.cpp) and for
// CUDA (<kernel>_cuda.cu, asynchronous in a stream). The work on a lane or a component is defined
// once for both, in lane_rule.h, decide_rule.h, act_rule.h and solvers/.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lanes.h"

struct CUstream_st;

namespace pyinv {

using CudaStream = CUstream_st*;  // cudaStream_t, without its header

// A lane to refill, with the target's rows of the caller's arrays.
struct RefillRows {
  Refill refill;
  uint64_t id;
  const float* image;
  const float* condition;  // null: there is none
  const float* weights;    // null: there are none
  const float* initial;    // null: drawn from the prior
  const float* truth;      // null: there is none
};

// The most rows per launch, because they are passed as kernel arguments.
constexpr int64_t kRowsPerLaunch = 32;
template <class Row>
struct RowsOfLaunch {
  Row row[kRowsPerLaunch];
};

// Calls launch_some(rows, their number) for all rows, as many as possible at a time.
template <class Row, class LaunchSome>
void launch_rows(std::span<const Row> rows, const LaunchSome& launch_some) {
  while (!rows.empty()) {
    const auto now = rows.first(std::min<size_t>(rows.size(), kRowsPerLaunch));
    rows = rows.subspan(now.size());
    RowsOfLaunch<Row> list{};
    std::copy(now.begin(), now.end(), list.row);
    launch_some(list, static_cast<unsigned>(now.size()));
  }
}

// refill: copies the target's rows to the lane, sets its first latent, and clears its moments.
void refill_cpu(const LaneArrays& lanes, std::span<const RefillRows> rows);
void refill_cuda(const LaneArrays& lanes, std::span<const RefillRows> rows, CudaStream stream);

// swap_lanes: swaps pairs of lanes, except their loss and gradient. A lane may be in only one pair
// per call. reassign: gives lanes another objective.
void swap_lanes_cpu(const LaneArrays& lanes, std::span<const LanePair> pairs);
void swap_lanes_cuda(const LaneArrays& lanes, std::span<const LanePair> pairs, CudaStream stream);
void reassign_cpu(const LaneArrays& lanes, std::span<const Reassignment> reassignments);
void reassign_cuda(const LaneArrays& lanes, std::span<const Reassignment> reassignments,
                   CudaStream stream);

// update_status: computes the error of the latent if the true latent is known, whether loss and
// gradient are finite, the stop rule that is met and, for independent lanes, the next action.
void update_status_cpu(const LaneArrays& lanes, int64_t active);
void update_status_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// group: decides the next action of coupled lanes.
void decide_group_cpu(const LaneArrays& lanes, int64_t active);
void decide_group_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// moments: computes lanes.batch_moments over all components of all lanes. `scratch` has room for
// kMomentsScratch of them.
constexpr int64_t kMomentsScratch = 1024;
struct PartialMoments {
  double count, mean, squares;  // squares: the sum of squared differences from the mean
};
void batch_moments_cpu(const LaneArrays& lanes, int64_t active);
void batch_moments_cuda(const LaneArrays& lanes, int64_t active, PartialMoments* scratch,
                        CudaStream stream);

// propose: for lanes whose solver makes trials and has this kind. Saves a newly accepted latent and
// computes the next trial from it, or stays there if no trial is found. It needs propose_scratch()
// doubles in lanes.scratch. On a GPU each block also has `shared_memory` bytes, which
// prepare_propose_cuda() determines once for the current device.
int64_t propose_scratch_cpu(SolverKind kind, int64_t latent_size);
int64_t propose_scratch_cuda(SolverKind kind, int64_t latent_size, int64_t lanes,
                             size_t shared_memory);
size_t prepare_propose_cuda();
void propose_cpu(const LaneArrays& lanes, SolverKind kind, int64_t active);
void propose_cuda(const LaneArrays& lanes, SolverKind kind, int64_t active, size_t shared_memory,
                  CudaStream stream);

// step: applies the decided actions to every component: return to the accepted latent, record,
// keep, step and constrain, draw.
void step_cpu(const LaneArrays& lanes, int64_t active);
void step_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// abandon: ends the current attempts; `step` then keeps their best latents.
void abandon_cpu(const LaneArrays& lanes, int64_t active);
void abandon_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// report: writes reports for the host, to memory that it can read.
void report_cpu(const LaneArrays& lanes, int64_t active, LaneReport* reports);
void report_cuda(const LaneArrays& lanes, int64_t active, LaneReport* reports, CudaStream stream);

}  // namespace pyinv
