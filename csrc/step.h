// The fused step of one lane: penalties, solver and constraint in one pass over z, g and moments.
#pragma once

#include <cstdint>

#include "step_rule.h"

namespace pyinv {

bool all_finite(const float* values, int64_t count);

void step_lane_cpu(const StepRule& rule, const LaneStep& lane, int64_t latent_size,
                   const float* gradient, float* latent, float* first_moment, float* second_moment,
                   uint32_t* born);

}  // namespace pyinv
