#include <algorithm>

#include "kernels/kernels.h"

namespace pyinv {

void exchange_cpu(const LaneArrays& lanes, std::span<const LanePair> pairs) {
  const int64_t d = lanes.latent_size;
  for (const auto& [a, b] : pairs) {
    std::swap(lanes.state[a], lanes.state[b]);
    const auto swap_rows = [a = a, b = b](auto* rows, int64_t size) {
      std::swap_ranges(rows + a * size, rows + (a + 1) * size, rows + b * size);
    };
    for (float* rows :
         {lanes.latent, lanes.first_moment, lanes.second_moment, lanes.recorded, lanes.outbox}) {
      swap_rows(rows, d);
    }
    swap_rows(lanes.born, d);
    swap_rows(lanes.gram, lanes.gram_size);
    swap_rows(lanes.pairs, 2 * d * lanes.history);
    swap_rows(lanes.products, 2 * lanes.history);
    swap_rows(lanes.image, lanes.image_size);
    swap_rows(lanes.condition, lanes.condition_size);
    swap_rows(lanes.truth, lanes.truth_size);
    swap_rows(lanes.trace, lanes.trace_length);
  }
}

void reassign_cpu(const LaneArrays& lanes, std::span<const Reassignment> reassignments) {
  for (const auto& [lane, objective] : reassignments) lanes.state[lane].objective = objective;
}

}  // namespace pyinv
