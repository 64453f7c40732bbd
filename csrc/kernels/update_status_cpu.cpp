#include <algorithm>
#include <cmath>

#include "decide_rule.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

bool all_finite(const float* values, int64_t count) {
  // x * 0 is 0 for a finite x and NaN otherwise. The sums are independent of each other.
  constexpr int64_t kSums = 8;
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] += values[i + k] * 0.0f;
  }
  for (; i < count; ++i) sums[0] += values[i] * 0.0f;
  return std::all_of(sums, sums + kSums, [](float sum) { return sum == 0.0f; });
}

Moments moments_of(const float* values, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  const double mean = sum / static_cast<double>(count);
  double squares = 0.0;
  for (int64_t i = 0; i < count; ++i) squares += (values[i] - mean) * (values[i] - mean);
  return {mean, std::sqrt(squares / static_cast<double>(count))};
}

double mean_squared_difference(const float* a, const float* b, int64_t count) {
  double squares = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double difference = double{a[i]} - b[i];
    squares += difference * difference;
  }
  return squares / static_cast<double>(count);
}

}  // namespace

void update_status_cpu(const LaneArrays& lanes, int64_t active) {
  const RunRule& rule = *lanes.rule;
  for (int64_t i = 0; i < active; ++i) {
    LaneState& lane = lanes.state[i];
    if (!at_work(lanes.stages, lane)) {
      lane.action = 0;
      continue;
    }
    const StageRule& stage = lanes.stages[lane.stage];
    float* trace = lanes.trace_length ? lanes.trace + i * lanes.trace_length : nullptr;
    if (trace && lane.attempt_steps == 0) std::fill_n(trace, lanes.trace_length, NAN);
    if (lanes.truth_size) {
      const int64_t first = i * lanes.latent_size;
      update_nearest(
          mean_squared_difference(lanes.latent + first, lanes.truth + first, lanes.latent_size),
          lane);
    }
    const float loss = lanes.loss[i];
    bool finite = all_finite(lanes.gradient + i * lanes.latent_size, lanes.latent_size);
    if (at_normal_equations(stage, lane)) {
      finite = finite && all_finite(lanes.gram + i * lanes.gram_size, lanes.gram_size);
    }
    if (needs_moments(rule, stage)) {
      lane.moments = moments_of(lanes.latent + i * lanes.latent_size, lanes.latent_size);
    }
    take_in(rule, stage, loss, finite, trace, lane);
    if (!rule.coupled) decide(rule, stage, loss, lane);
  }
}

void decide_group_cpu(const LaneArrays& lanes, int64_t active) {
  if (!at_work(lanes.stages, lanes.state[0])) return;
  const RunRule& rule = *lanes.rule;
  GroupVotes votes{true, false, false};
  for (int64_t i = 0; i < active; ++i) votes.join(vote(rule, lanes.state[i]));
  for (int64_t i = 0; i < active; ++i) {
    LaneState& lane = lanes.state[i];
    decide_in_group(rule, lanes.stages[lane.stage], votes, *lanes.batch_moments, lanes.loss[i],
                    lane);
  }
}

void batch_moments_cpu(const LaneArrays& lanes, int64_t active) {
  *lanes.batch_moments = moments_of(lanes.latent, active * lanes.latent_size);
}

void abandon_cpu(const LaneArrays& lanes, int64_t active) {
  for (int64_t i = 0; i < active; ++i) abandon(lanes.state[i]);
}

void report_cpu(const LaneArrays& lanes, int64_t active, LaneReport* reports) {
  for (int64_t i = 0; i < active; ++i) {
    reports[i] = report(lanes.stages, lanes.state[i], lanes.loss[i]);
  }
}

}  // namespace pyinv
