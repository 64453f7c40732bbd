// The kernels: loops over the lanes [0, active) of a run, each for the CPU (<kernel>_cpu.cpp) and
// for CUDA (<kernel>_cuda.cu, which puts it into a stream and returns). What they do to a lane or a
// component is written once, in lane_rule.h, decide_rule.h, act_rule.h and solvers/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lanes.h"

struct CUstream_st;

namespace pyinv {

using CudaStream = CUstream_st*;  // cudaStream_t, without its header

// Lanes that take a target, with the target's rows of what the caller was given.
struct RefillRows {
  Refill refill;
  uint64_t id;
  const float* image;
  const float* condition;  // null: there is none
  const float* initial;    // null: drawn from the prior
  const float* truth;      // null: there is none
};

// Rows that one launch may take: they travel with it.
constexpr int64_t kRowsPerLaunch = 32;

// refill: the target's rows into the lane's, its first latent, no moments.
void refill_cpu(const LaneArrays& lanes, std::span<const RefillRows> rows);
void refill_cuda(const LaneArrays& lanes, std::span<const RefillRows> rows, CudaStream stream);

// swap_lanes: two lanes change places, in everything but loss and gradient; no lane twice in a
// call. reassign: lanes get another objective.
void swap_lanes_cpu(const LaneArrays& lanes, std::span<const LanePair> pairs);
void swap_lanes_cuda(const LaneArrays& lanes, std::span<const LanePair> pairs, CudaStream stream);
void reassign_cpu(const LaneArrays& lanes, std::span<const Reassignment> reassignments);
void reassign_cuda(const LaneArrays& lanes, std::span<const Reassignment> reassignments,
                   CudaStream stream);

// update_status: how near the latent is to the truth, if that is known; are loss and gradient
// finite, which stop rule is met, and, for lanes on their own, what follows.
void update_status_cpu(const LaneArrays& lanes, int64_t active);
void update_status_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// group: what follows for coupled lanes that were evaluated.
void decide_group_cpu(const LaneArrays& lanes, int64_t active);
void decide_group_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// moments: of all components of all lanes, into lanes.batch_moments. `scratch` holds
// kMomentsScratch of them.
constexpr int64_t kMomentsScratch = 1024;
struct PartialMoments {
  double count, mean, squares;  // squares: the sum of squared differences from the mean
};
void batch_moments_cpu(const LaneArrays& lanes, int64_t active);
void batch_moments_cuda(const LaneArrays& lanes, int64_t active, PartialMoments* scratch,
                        CudaStream stream);

// propose: for lanes whose solver makes trials and is of this kind. Takes over the latent that was
// accepted, and makes the next trial out of it; or stays there, when nothing gives a trial. It
// wants propose_scratch() doubles in lanes.scratch. On a GPU a block has `shared_memory` bytes of
// its own as well, which prepare_propose_cuda() finds out, once for the current device.
int64_t propose_scratch_cpu(SolverKind kind, int64_t latent_size);
int64_t propose_scratch_cuda(SolverKind kind, int64_t latent_size, int64_t lanes,
                             size_t shared_memory);
size_t prepare_propose_cuda();
void propose_cpu(const LaneArrays& lanes, SolverKind kind, int64_t active);
void propose_cuda(const LaneArrays& lanes, SolverKind kind, int64_t active, size_t shared_memory,
                  CudaStream stream);

// step: does to every component what was decided: go back to what was accepted, record, keep,
// step and constrain, draw.
void step_cpu(const LaneArrays& lanes, int64_t active);
void step_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// abandon: ends the attempts under way, `step` then keeps their best.
void abandon_cpu(const LaneArrays& lanes, int64_t active);
void abandon_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream);

// report: what the host wants to know, into memory that it can read.
void report_cpu(const LaneArrays& lanes, int64_t active, LaneReport* reports);
void report_cuda(const LaneArrays& lanes, int64_t active, LaneReport* reports, CudaStream stream);

}  // namespace pyinv
