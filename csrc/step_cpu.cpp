#include "step.h"

namespace pyinv {

bool all_finite(const float* values, int64_t count) {
  // x * 0 is 0 for a finite x and NaN otherwise; unlike a branch an element, the sum vectorises.
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += values[i] * 0.0f;
  return sum == 0.0f;
}

void step_lane_cpu(const StepRule& rule, const LaneStep& lane, int64_t latent_size,
                   const float* gradient, float* latent, float* first_moment, float* second_moment,
                   uint32_t* born) {
  for (int64_t i = 0; i < latent_size; ++i) {
    step_component(rule, lane, static_cast<uint32_t>(i), gradient[i], latent[i], first_moment[i],
                   second_moment[i], born[i]);
  }
}

}  // namespace pyinv
