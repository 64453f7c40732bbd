#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "lbfgs_rule.h"

namespace pyinv {
namespace {

// Several sums at once: each has to wait for its last addition, and latents may be long.
template <class Term>
double sum(int64_t count, Term term) {
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] += term(i + k);
  }
  for (; i < count; ++i) sums[0] += term(i);
  double total = 0.0;
  for (const double one : sums) total += one;
  return total;
}

double dot(const float* a, const double* b, int64_t count) {
  return sum(count, [=](int64_t i) { return a[i] * b[i]; });
}

// b += scale a
void add(double scale, const float* a, double* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) b[i] += scale * a[i];
}

void take_over(const LaneArrays& lanes, int64_t lane) {
  const int64_t d = lanes.latent_size, first = lane * d;
  LaneState& state = lanes.state[lane];
  const float *latent = lanes.latent + first, *gradient = lanes.gradient + first;
  if (state.action & kRecord) std::copy_n(latent, d, lanes.recorded + first);
  if (state.trust.trial) {
    const Accepted before = accepted_of(lanes, lane);
    const Pairs pairs = pairs_of(lanes, lane);
    const double slope = state.trust.former_slope;
    const auto pair = [&](int64_t i) {
      return pair_component(before, slope, i, latent[i], gradient[i]);
    };
    const double sy = sum(d, [&](int64_t i) { return double{pair(i).s} * pair(i).y; });
    const double yy = sum(d, [&](int64_t i) { return double{pair(i).y} * pair(i).y; });
    if (is_curved(sy, yy)) {
      count_pair(pairs, sy, yy, state.search);
      const int64_t place = pairs.place(state.search.made, 0);
      pairs.products[place] = sy;
      float *s = pairs.s(place), *y = pairs.y(place);
      for (int64_t i = 0; i < d; ++i) {
        s[i] = pair(i).s;
        y[i] = pair(i).y;
      }
    }
  }
  std::copy_n(latent, d, lanes.second_moment + first);
  std::copy_n(gradient, d, lanes.first_moment + first);
}

// Fills in -H g; false unless it leads down.
bool find_direction(const RunRule& rule, const StageRule& stage, const Accepted& at,
                    const Pairs& pairs, const Search& search, double* direction) {
  const int64_t d = at.size;
  for (int64_t i = 0; i < d; ++i) direction[i] = at.held(i) ? 0.0 : at.right_side(i);
  if (search.pairs == 0) {
    const double norm = std::sqrt(sum(d, [=](int64_t i) { return direction[i] * direction[i]; }));
    const double scale = first_scale(rule, stage, norm);
    for (int64_t i = 0; i < d; ++i) direction[i] *= scale;
    return is_positive(norm);
  }
  for (int64_t age = 0; age < search.pairs; ++age) {
    const int64_t place = pairs.place(search.made, age);
    const double weight = dot(pairs.s(place), direction, d) / pairs.products[place];
    pairs.weights[place] = weight;
    add(-weight, pairs.y(place), direction, d);
  }
  for (int64_t i = 0; i < d; ++i) direction[i] *= search.curvature;
  for (int64_t age = search.pairs - 1; age >= 0; --age) {
    const int64_t place = pairs.place(search.made, age);
    const double weight = dot(pairs.y(place), direction, d) / pairs.products[place];
    add(pairs.weights[place] - weight, pairs.s(place), direction, d);
  }
  for (int64_t i = 0; i < d; ++i) {
    if (at.held(i)) direction[i] = 0.0;
  }
  return is_positive(sum(d, [&](int64_t i) { return direction[i] * at.right_side(i); }));
}

void search_lane(const LaneArrays& lanes, int64_t lane, double* direction) {
  const RunRule& rule = *lanes.rule;
  LaneState& state = lanes.state[lane];
  const StageRule& stage = lanes.stages[state.stage];
  if (state.action & kAccept) take_over(lanes, lane);

  const Accepted at = accepted_of(lanes, lane);
  const Pairs pairs = pairs_of(lanes, lane);
  const int64_t d = at.size;
  float* latent = lanes.latent + lane * d;
  Search& search = state.search;
  bool found = false;
  for (;;) {
    found = find_direction(rule, stage, at, pairs, search, direction);
    for (int64_t i = 0; i < d && found; ++i) {
      found = try_component(stage.step, state.step, i, at.latent[i], search.length * direction[i],
                            latent[i]);
    }
    if (found || search.pairs == 0) break;
    forget_pairs(search);
  }

  double promised = 0.0, penalty = 0.0;
  if (found) {
    const auto step = [=](int64_t i) { return double{latent[i]} - at.latent[i]; };
    promised = sum(d, [&](int64_t i) { return step(i) * at.right_side(i); });
    penalty = sum(d, [&](int64_t i) { return penalty_fall(at, i, step(i)); });
  } else {
    std::copy_n(at.latent, d, latent);
  }
  end_trial(rule, stage, found, promised, penalty, state);
}

}  // namespace

int64_t lbfgs_scratch_cpu(int64_t d) { return d; }

void lbfgs_cpu(const LaneArrays& lanes, int64_t active) {
  for (int64_t lane = 0; lane < active; ++lane) {
    const LaneState& state = lanes.state[lane];
    if (state.action & kSolve && searches(lanes.stages[state.stage])) {
      search_lane(lanes, lane, lanes.direction);
    }
  }
}

}  // namespace pyinv
