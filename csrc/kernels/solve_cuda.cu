#include <algorithm>

#include "cuda_support.h"
#include "kernels/kernels.h"
#include "solve_rule.h"

namespace pyinv {
namespace {

constexpr unsigned kMaxThreads = 512;
constexpr unsigned kWarp = 32;

// A block's memory for its lane.
struct Work {
  double *column, *step, *penalty, *factor;
  uint8_t* held;
};

size_t shared_bytes(int64_t d, bool with_factor) {
  const int64_t doubles = 3 * d + (with_factor ? packed_row(d) : 0);
  return static_cast<size_t>(doubles) * sizeof(double) + static_cast<size_t>(d);
}

// By every thread, in the order of the CPU: there are few.
__device__ double sum(const double* values, int64_t count) {
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

// Rows of the triangle below `first` for the warps, their columns for a warp's threads.
template <class Do>
__device__ void for_triangle(int64_t first, int64_t d, Do element) {
  const int64_t warps = blockDim.x / kWarp;
  for (int64_t i = first + threadIdx.x / kWarp; i < d; i += warps) {
    for (int64_t j = first + threadIdx.x % kWarp; j <= i; j += kWarp) element(i, j);
  }
}

// The three below end with all threads at one place.
__device__ bool factorise(int64_t d, const Work& work) {
  double *factor = work.factor, *column = work.column;
  for (int64_t k = 0; k < d; ++k) {
    const double pivot = factor[packed_row(k) + k];
    if (!is_positive(pivot)) return false;
    const double root = sqrt(pivot);
    for (int64_t i = k + 1 + threadIdx.x; i < d; i += blockDim.x) {
      column[i] = factor[packed_row(i) + k] /= root;
    }
    __syncthreads();
    if (threadIdx.x == 0) factor[packed_row(k) + k] = root;
    for_triangle(k + 1, d,
                 [&](int64_t i, int64_t j) { factor[packed_row(i) + j] -= column[i] * column[j]; });
    __syncthreads();
  }
  return true;
}

__device__ void substitute(int64_t d, const Work& work) {
  const double* factor = work.factor;
  double* step = work.step;
  for (int64_t k = 0; k < d; ++k) {
    const double x = step[k] / factor[packed_row(k) + k];
    for (int64_t i = k + 1 + threadIdx.x; i < d; i += blockDim.x) {
      step[i] -= factor[packed_row(i) + k] * x;
    }
    __syncthreads();
    if (threadIdx.x == 0) step[k] = x;
  }
  __syncthreads();
  for (int64_t k = d - 1; k >= 0; --k) {
    const double x = step[k] / factor[packed_row(k) + k];
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
      step[i] -= factor[packed_row(k) + i] * x;
    }
    __syncthreads();
    if (threadIdx.x == 0) step[k] = x;
  }
  __syncthreads();
}

// Whether this damping, lambda m, gives a trial, which is then in `latent`.
__device__ bool try_damping(const NormalEquations& equations, const StageRule& stage,
                            const LaneStep& lane, double damping, const Work& work, float* latent) {
  const int64_t d = equations.size;
  __syncthreads();  // `work` has been used
  for_triangle(0, d, [&](int64_t i, int64_t j) {
    work.factor[packed_row(i) + j] = equations.element(i, j, work.held[i] || work.held[j], damping);
  });
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    work.step[i] = work.held[i] ? 0.0 : equations.right_side(i);
  }
  __syncthreads();
  if (!factorise(d, work)) return false;
  substitute(d, work);
  bool finite = true;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    finite &= try_component(stage.step, lane, i, equations.latent[i], work.step[i], latent[i]);
  }
  return __syncthreads_and(finite);
}

// A block a lane. The first thread keeps the lane's state.
template <bool kInShared>
__global__ void __launch_bounds__(kMaxThreads)
    solve_kernel(const __grid_constant__ LaneArrays lanes) {
  const int64_t lane = blockIdx.x;
  const int64_t d = lanes.latent_size, first = lane * d;
  LaneState& state = lanes.state[lane];
  const uint8_t action = state.action;
  if (!(action & kSolve)) return;
  const StageRule& stage = lanes.stages[state.stage];
  if (!solves(stage)) return;
  float *latent = lanes.latent + first, *accepted = lanes.second_moment + first;

  double* memory = dynamic_shared_memory();
  Work work{memory, memory + d, memory + 2 * d, lanes.factors + lane * packed_row(d), nullptr};
  memory += 3 * d;
  if constexpr (kInShared) {
    work.factor = memory;
    memory += packed_row(d);
  }
  work.held = reinterpret_cast<uint8_t*>(memory);

  // A thread has the same components throughout.
  if (action & kAccept) {
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
      if (action & kRecord) lanes.recorded[first + i] = latent[i];
      accepted[i] = latent[i];
      lanes.first_moment[first + i] = lanes.gradient[first + i];
    }
  }
  const NormalEquations equations = normal_equations(lanes, lane);
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    work.column[i] = equations.gram[i * d + i];
    work.held[i] = equations.held(i);
  }
  __syncthreads();
  const double unit = damping_unit(sum(work.column, d) / static_cast<double>(d));
  double damping = state.trust.damping;
  bool solved = false;
  for (int raises = 0;; ++raises) {
    solved = try_damping(equations, stage, state.step, damping * unit, work, latent);
    if (solved || raises == kMostRaises) break;
    damping *= stage.solver.damping_up;
  }

  if (solved) {
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
      work.step[i] = double{latent[i]} - accepted[i];
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
      double bend = 0.0;
      for (int64_t j = 0; j < d; ++j) bend += equations.gram[j * d + i] * work.step[j];
      work.column[i] = model_fall(equations, i, work.step[i], bend);
      work.penalty[i] = penalty_fall(equations, i, work.step[i]);
    }
  } else {
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) latent[i] = accepted[i];
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  state.trust.damping = damping;
  end_trial(*lanes.rule, stage, solved, solved ? sum(work.column, d) : 0.0,
            solved ? sum(work.penalty, d) : 0.0, state);
}

}  // namespace

size_t prepare_solve_cuda() {
  int device = 0, most = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "cudaDeviceGetAttribute");
  for (const auto kernel : {solve_kernel<true>, solve_kernel<false>}) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
               "cudaFuncSetAttribute");
  }
  return static_cast<size_t>(most);
}

int64_t solve_scratch_cuda(int64_t d, int64_t lanes, size_t shared_memory) {
  return shared_bytes(d, true) <= shared_memory ? 0 : lanes * packed_row(d);
}

void solve_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  if (active == 0) return;
  const int64_t d = lanes.latent_size;
  const bool in_shared = !lanes.factors;
  const Block block(threads_for(2 * d, kMaxThreads), shared_bytes(d, in_shared));
  launch("solve kernel", in_shared ? solve_kernel<true> : solve_kernel<false>,
         dim3(blocks_for(active, 1)), block, stream, lanes);
}

}  // namespace pyinv
