#include <algorithm>

#include "cuda_support.h"
#include "kernels/block_sum.h"
#include "kernels/kernels.h"
#include "lbfgs_rule.h"

namespace pyinv {
namespace {

constexpr unsigned kMaxThreads = 512;

// Does `element` for each of this thread's components, which stay the same throughout: what one
// thread wrote of them no other one reads.
template <class Do>
__device__ void for_mine(int64_t count, Do element) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) element(i);
}

// To all threads, which come here together.
template <class Term>
__device__ double sum(int64_t count, double* shared, Term term) {
  double mine = 0.0;
  for_mine(count, [&](int64_t i) { mine += term(i); });
  return block_sum(mine, shared);
}

// `search` is each thread's own, here and below: the same for all.
__device__ void take_over(const LaneArrays& lanes, int64_t lane, uint8_t action, Search& search,
                          double* shared) {
  const int64_t d = lanes.latent_size, first = lane * d;
  const LaneState& state = lanes.state[lane];
  const float *latent = lanes.latent + first, *gradient = lanes.gradient + first;
  if (state.trust.trial) {
    const Accepted before = accepted_of(lanes, lane);
    const Pairs pairs = pairs_of(lanes, lane);
    const double slope = state.trust.former_slope;
    const auto pair = [&](int64_t i) {
      return pair_component(before, slope, i, latent[i], gradient[i]);
    };
    const double sy = sum(d, shared, [&](int64_t i) { return double{pair(i).s} * pair(i).y; });
    const double yy = sum(d, shared, [&](int64_t i) { return double{pair(i).y} * pair(i).y; });
    if (is_curved(sy, yy)) {
      count_pair(pairs, sy, yy, search);
      const int64_t place = pairs.place(search.made, 0);
      if (threadIdx.x == 0) pairs.products[place] = sy;
      float *s = pairs.s(place), *y = pairs.y(place);
      for_mine(d, [&](int64_t i) {
        const PairComponent now = pair(i);
        s[i] = now.s;
        y[i] = now.y;
      });
    }
  }
  for_mine(d, [&](int64_t i) {
    if (action & kRecord) lanes.recorded[first + i] = latent[i];
    lanes.second_moment[first + i] = latent[i];
    lanes.first_moment[first + i] = gradient[i];
  });
  __syncthreads();  // all see the product
}

// Fills in -H g; false unless it leads down.
__device__ bool find_direction(const RunRule& rule, const StageRule& stage, const Accepted& at,
                               const Pairs& pairs, const Search& search, double* direction,
                               double* shared) {
  const int64_t d = at.size;
  for_mine(d, [&](int64_t i) { direction[i] = at.held(i) ? 0.0 : at.right_side(i); });
  if (search.pairs == 0) {
    const double norm =
        sqrt(sum(d, shared, [&](int64_t i) { return direction[i] * direction[i]; }));
    const double scale = first_scale(rule, stage, norm);
    for_mine(d, [&](int64_t i) { direction[i] *= scale; });
    return is_positive(norm);
  }
  for (int64_t age = 0; age < search.pairs; ++age) {
    const int64_t place = pairs.place(search.made, age);
    const float *s = pairs.s(place), *y = pairs.y(place);
    const double weight =
        sum(d, shared, [&](int64_t i) { return s[i] * direction[i]; }) / pairs.products[place];
    // Read after the sums of the way back have made all threads wait.
    if (threadIdx.x == 0) pairs.weights[place] = weight;
    for_mine(d, [&](int64_t i) { direction[i] -= weight * y[i]; });
  }
  for_mine(d, [&](int64_t i) { direction[i] *= search.curvature; });
  for (int64_t age = search.pairs - 1; age >= 0; --age) {
    const int64_t place = pairs.place(search.made, age);
    const float *s = pairs.s(place), *y = pairs.y(place);
    const double weight =
        sum(d, shared, [&](int64_t i) { return y[i] * direction[i]; }) / pairs.products[place];
    const double back = pairs.weights[place] - weight;
    for_mine(d, [&](int64_t i) { direction[i] += back * s[i]; });
  }
  for_mine(d, [&](int64_t i) {
    if (at.held(i)) direction[i] = 0.0;
  });
  return is_positive(sum(d, shared, [&](int64_t i) { return direction[i] * at.right_side(i); }));
}

// A block a lane. The first thread keeps the lane's state.
__global__ void __launch_bounds__(kMaxThreads)
    lbfgs_kernel(const __grid_constant__ LaneArrays lanes) {
  __shared__ double shared[kMaxThreads];
  const int64_t lane = blockIdx.x;
  const int64_t d = lanes.latent_size;
  const RunRule& rule = *lanes.rule;
  LaneState& state = lanes.state[lane];
  const StageRule& stage = lanes.stages[state.stage];
  const uint8_t action = state.action;
  if (!(action & kSolve) || !searches(stage)) return;
  Search search = state.search;
  if (action & kAccept) take_over(lanes, lane, action, search, shared);

  const Accepted at = accepted_of(lanes, lane);
  const Pairs pairs = pairs_of(lanes, lane);
  double* direction = lanes.direction + lane * d;
  float* latent = lanes.latent + lane * d;
  bool found = false;
  for (;;) {
    found = find_direction(rule, stage, at, pairs, search, direction, shared);
    if (found) {
      bool finite = true;
      for_mine(d, [&](int64_t i) {
        finite &= try_component(stage.step, state.step, i, at.latent[i],
                                search.length * direction[i], latent[i]);
      });
      found = __syncthreads_and(finite);
    }
    if (found || search.pairs == 0) break;
    forget_pairs(search);
  }

  double promised = 0.0, penalty = 0.0;
  if (found) {
    const auto step = [&](int64_t i) { return double{latent[i]} - at.latent[i]; };
    promised = sum(d, shared, [&](int64_t i) { return step(i) * at.right_side(i); });
    penalty = sum(d, shared, [&](int64_t i) { return penalty_fall(at, i, step(i)); });
  } else {
    for_mine(d, [&](int64_t i) { latent[i] = at.latent[i]; });
  }
  __syncthreads();  // all have read the state
  if (threadIdx.x > 0) return;
  state.search = search;
  end_trial(rule, stage, found, promised, penalty, state);
}

}  // namespace

int64_t lbfgs_scratch_cuda(int64_t d, int64_t lanes) { return lanes * d; }

void lbfgs_cuda(const LaneArrays& lanes, int64_t active, CudaStream stream) {
  if (active == 0) return;
  launch("lbfgs kernel", lbfgs_kernel, dim3(blocks_for(active, 1)),
         threads_for(lanes.latent_size, kMaxThreads), stream, lanes);
}

}  // namespace pyinv
