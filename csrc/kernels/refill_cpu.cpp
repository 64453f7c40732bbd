#include <algorithm>

#include "kernels/kernels.h"
#include "solvers/first_order.h"

namespace pyinv {

void refill_cpu(const LaneArrays& lanes, std::span<const RefillRows> rows) {
  const RunRule& rule = *lanes.rule;
  const int64_t d = lanes.latent_size;
  for (const RefillRows& row : rows) {
    const int64_t lane = row.refill.lane;
    lanes.state[lane] = begin_target(row.id, row.refill.row, first_objective(lanes.stages[0]));
    std::copy_n(row.image, lanes.image_size, lanes.image + lane * lanes.image_size);
    if (row.condition) {
      std::copy_n(row.condition, lanes.condition_size,
                  lanes.condition + lane * lanes.condition_size);
    }
    if (row.weights) {
      std::copy_n(row.weights, lanes.weights_size, lanes.weights + lane * lanes.weights_size);
    }
    if (row.truth) std::copy_n(row.truth, lanes.truth_size, lanes.truth + lane * lanes.truth_size);
    float* latent = lanes.latent + lane * d;
    for (int64_t i = 0; i < d; ++i) {
      const float z =
          row.initial ? row.initial[i] : first_latent(rule, row.id, static_cast<uint32_t>(i));
      latent[i] = within_bounds(lanes.stages[0], z);
    }
    std::copy_n(latent, d, lanes.attempt_latent + lane * d);
    if (!lanes.stages[0].makes_trials) {
      const FirstOrderRows rows = first_order_rows(lanes, lane * d);
      std::fill_n(rows.m, d, 0.0f);
      std::fill_n(rows.v, d, 0.0f);
      std::fill_n(rows.reset_step, d, 0u);
    }
    std::fill_n(lanes.trace + lane * lanes.trace_length, lanes.trace_length, NAN);
  }
}

}  // namespace pyinv
