#include <algorithm>

#include "kernels/kernels.h"

namespace pyinv {

void swap_lanes_cpu(const LaneArrays& lanes, std::span<const LanePair> pairs) {
  const int64_t d = lanes.latent_size;
  for (const auto& [a, b] : pairs) {
    std::swap(lanes.state[a], lanes.state[b]);
    const auto swap_rows = [a = a, b = b](auto* rows, int64_t size) {
      std::swap_ranges(rows + a * size, rows + (a + 1) * size, rows + b * size);
    };
    for (float* rows : {lanes.latent, lanes.attempt_latent, lanes.best_latent}) swap_rows(rows, d);
    swap_rows(lanes.gram, lanes.gram_size);
    for (int64_t i = 0; i < lanes.storage.vectors; ++i) {
      swap_rows(lanes.vectors + i * lanes.lanes * d, d);
    }
    for (int64_t i = 0; i < lanes.storage.count_vectors; ++i) {
      swap_rows(lanes.count_vectors + i * lanes.lanes * d, d);
    }
    swap_rows(lanes.doubles, lanes.storage.doubles);
    swap_rows(lanes.image, lanes.image_size);
    swap_rows(lanes.condition, lanes.condition_size);
    swap_rows(lanes.weights, lanes.weights_size);
    swap_rows(lanes.truth, lanes.truth_size);
    swap_rows(lanes.trace, lanes.trace_length);
  }
}

void reassign_cpu(const LaneArrays& lanes, std::span<const Reassignment> reassignments) {
  for (const auto& [lane, objective] : reassignments) lanes.state[lane].objective = objective;
}

}  // namespace pyinv
