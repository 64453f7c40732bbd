#include <algorithm>

#include "act_rule.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

// A fast path for what nearly every lane does at nearly every step: `act` without branches. The
// rules are local copies, so the compiler knows that writes to a latent do not change them.
template <class FirstOrder>
void step_lane(const LaneArrays& lanes, int64_t lane) {
  const LaneState& state = lanes.state[lane];
  const StepRule rule = lanes.stages[state.stage].step;
  const LaneStep step = state.step;
  const int64_t d = lanes.latent_size, first = lane * d;
  float* latent = lanes.latent + first;
  const float* gradient = lanes.gradient + first;
  const FirstOrderRows rows = first_order_rows(lanes, first);
  if (state.action & kRecord) std::copy_n(latent, d, lanes.attempt_latent + first);
  for (int64_t i = 0; i < d; ++i) {
    const float g = penalised(rule, step, gradient[i], latent[i]);
    FirstOrder::move(rule, step, g, latent[i], rows.m[i], rows.v[i], rows.reset_step[i]);
    constrain_step(rule, step, static_cast<uint32_t>(i), latent[i], rows.m[i], rows.v[i],
                   rows.reset_step[i]);
  }
}

}  // namespace

void step_cpu(const LaneArrays& lanes, int64_t active) {
  for (int64_t lane = 0; lane < active; ++lane) {
    const LaneState& state = lanes.state[lane];
    const uint8_t action = state.action;
    if ((action & ~kRecord) == kStep) {
      Solvers::visit(lanes.stages[state.stage].step.solver, [&](auto solver) {
        if constexpr (!solver.kMakesTrials) step_lane<decltype(solver)>(lanes, lane);
      });
    } else if (action) {
      for (int64_t i = 0; i < lanes.latent_size; ++i) act<1>(lanes, lane, i);
    }
  }
}

}  // namespace pyinv
