#include "kernels/kernels.h"
#include "lane_rule.h"

namespace pyinv {

void step_cpu(const LaneArrays& lanes, int64_t active) {
  for (int64_t lane = 0; lane < active; ++lane) {
    for (int64_t i = 0; i < lanes.latent_size; ++i) act(lanes, lane, i);
  }
}

}  // namespace pyinv
