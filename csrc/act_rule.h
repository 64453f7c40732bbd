// Applies a lane's decided actions to its components. The loops over components are in kernels/.
#pragma once

#include "lane_rule.h"
#include "solvers/solvers.h"

namespace pyinv {

// Adjacent values that are read and written at once, aligned to their total size.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

template <int kWidth, class T>
PYINV_HOST_DEVICE inline Pack<T, kWidth>& pack(T* values) {
  return *reinterpret_cast<Pack<T, kWidth>*>(values);
}

// Applies the actions to components [component, component + kWidth) of a lane. All reads come
// before all writes: the compiler cannot know that the arrays do not overlap, and a GPU would
// otherwise wait for every write. best_latent may be in memory that is slow to access.
template <int kWidth>
PYINV_HOST_DEVICE inline void act(const LaneArrays& lanes, int64_t lane, int64_t component) {
  const LaneState& state = lanes.state[lane];
  const uint8_t action = state.action;
  if (!action) return;
  const int64_t k = lane * lanes.latent_size + component;
  const uint32_t number = static_cast<uint32_t>(component);
  const FirstOrderRows rows = first_order_rows(lanes, k);

  Pack<float, kWidth> z = pack<kWidth>(lanes.latent + k), m{}, v{}, gradient{}, attempt{};
  Pack<uint32_t, kWidth> reset_step{};
  if (action & kReturn) z = pack<kWidth>(lanes.vectors + k);
  if (action & kStep) {
    gradient = pack<kWidth>(lanes.gradient + k);
    m = pack<kWidth>(rows.m);
    v = pack<kWidth>(rows.v);
    reset_step = pack<kWidth>(rows.reset_step);
  }
  if (action & kRecord) {
    attempt = z;
  } else if (action & kKeep) {
    attempt = pack<kWidth>(lanes.attempt_latent + k);
  }
  const bool from_best = action & kDraw && hops(*lanes.rule, state);
  const Pack<float, kWidth> kept =
      from_best && !(action & kKeep) ? pack<kWidth>(lanes.best_latent + k) : attempt;

  bool was_reset = false;
  if (action & kStep) {
    const StepRule& rule = lanes.stages[state.stage].step;
    PYINV_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      const uint32_t before = reset_step.at[i];
      step_component(rule, state.step, number + i, gradient.at[i], z.at[i], m.at[i], v.at[i],
                     reset_step.at[i]);
      was_reset |= reset_step.at[i] != before;
    }
  }
  if (action & kDraw) {
    const RunRule& rule = *lanes.rule;
    const DrawKey key = {rule.seed, state.id, static_cast<uint32_t>(state.attempt)};
    PYINV_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      const float draw = initial_draw(rule.prior, key, number + i);
      z.at[i] = from_best ? hop_from(rule, kept.at[i], draw) : draw;
    }
  }
  bool clears = false;
  if (action & kBegin) {
    const StageRule& next = lanes.stages[state.stage];
    clears = !next.makes_trials;
    PYINV_UNROLL
    for (int i = 0; i < kWidth; ++i) z.at[i] = within_bounds(next, z.at[i]);
    attempt = z;
    m = v = {};
    reset_step = {};
  }

  if (action & (kReturn | kStep | kDraw | kBegin)) pack<kWidth>(lanes.latent + k) = z;
  if (action & kStep || clears) {
    pack<kWidth>(rows.m) = m;
    pack<kWidth>(rows.v) = v;
  }
  if (was_reset || clears) pack<kWidth>(rows.reset_step) = reset_step;
  if (action & (kRecord | kBegin)) pack<kWidth>(lanes.attempt_latent + k) = attempt;
  if (action & kKeep) pack<kWidth>(lanes.best_latent + k) = kept;
}

}  // namespace pyinv
