#include "kernels/kernels.h"
#include "solvers/solvers.h"

namespace pyinv {

int64_t propose_scratch_cpu(SolverKind kind, int64_t latent_size) {
  int64_t size = 0;
  Solvers::visit(kind, [&](auto solver) {
    if constexpr (solver.kMakesTrials) {
      const Scratch scratch = solver.scratch(latent_size, SIZE_MAX);
      size = scratch.near + scratch.far;
    }
  });
  return size;
}

void propose_cpu(const LaneArrays& lanes, SolverKind kind, int64_t active) {
  Solvers::visit(kind, [&](auto solver) {
    if constexpr (solver.kMakesTrials) {
      const Scratch scratch = solver.scratch(lanes.latent_size, SIZE_MAX);
      double* far = scratch.far ? lanes.scratch + scratch.near : nullptr;
      for (int64_t lane = 0; lane < active; ++lane) {
        const LaneState& state = lanes.state[lane];
        if (state.action & kPropose && lanes.stages[state.stage].solver.kind == kind) {
          solver.propose(SoloTeam(), lanes, lane, lanes.scratch, far);
        }
      }
    }
  });
}

}  // namespace pyinv
