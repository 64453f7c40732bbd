#include <algorithm>

#include "cuda_support.h"
#include "kernels/kernels.h"
#include "solvers/cholesky_cuda.h"
#include "solvers/solvers.h"

namespace pyinv {
namespace {

// One block per lane. kFar: whether the solver uses far memory. As a template parameter, it lets
// the compiler know that near memory is shared memory.
template <class ThisSolver, bool kFar>
__global__ void __launch_bounds__(kMaxWorkers)
    propose_kernel(const __grid_constant__ LaneArrays lanes, int64_t far_size) {
  const int64_t lane = blockIdx.x;
  const LaneState& state = lanes.state[lane];
  if (!(state.action & kPropose)) return;
  if (lanes.stages[state.stage].solver.kind != ThisSolver::kKind) return;
  double* far = kFar ? lanes.scratch + lane * far_size : nullptr;
  ThisSolver::propose(BlockTeam(), lanes, lane, dynamic_shared_memory(), far);
}

}  // namespace

size_t prepare_propose_cuda() {
  int device = 0, most = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "cudaDeviceGetAttribute");
  Solvers::visit_all([&](auto solver) {
    if constexpr (solver.kMakesTrials) {
      using ThisSolver = decltype(solver);
      for (const auto kernel :
           {propose_kernel<ThisSolver, true>, propose_kernel<ThisSolver, false>}) {
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
                   "cudaFuncSetAttribute");
      }
    }
  });
  return static_cast<size_t>(most);
}

int64_t propose_scratch_cuda(SolverKind kind, int64_t latent_size, int64_t lanes,
                             size_t shared_memory) {
  int64_t size = 0;
  Solvers::visit(kind, [&](auto solver) {
    if constexpr (solver.kMakesTrials) {
      size = lanes * solver.scratch(latent_size, shared_memory).far;
    }
  });
  return size;
}

void propose_cuda(const LaneArrays& lanes, SolverKind kind, int64_t active, size_t shared_memory,
                  CudaStream stream) {
  if (active == 0) return;
  const int64_t d = lanes.latent_size;
  Solvers::visit(kind, [&](auto solver) {
    if constexpr (solver.kMakesTrials) {
      using ThisSolver = decltype(solver);
      const Scratch scratch = solver.scratch(d, shared_memory);
      const Block block(threads_for(solver.workers(d), kMaxWorkers),
                        static_cast<size_t>(scratch.near) * sizeof(double));
      launch("propose kernel",
             scratch.far ? propose_kernel<ThisSolver, true> : propose_kernel<ThisSolver, false>,
             dim3(blocks_for(active, 1)), block, stream, lanes, scratch.far);
    }
  });
}

}  // namespace pyinv
