// For the CUDA sources: the threads of a block as a team.
#pragma once

#include "kernels/block_sum.h"
#include "solvers/team.h"

namespace pyinv {

class BlockTeam {
 public:
  template <class Do>
  __device__ void for_each(int64_t count, Do element) const {
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) element(i);
  }
  __device__ void barrier() const { __syncthreads(); }
  __device__ bool all(bool holds) const { return __syncthreads_and(holds); }
  __device__ bool is_leader() const { return threadIdx.x == 0; }

  template <class Term>
  __device__ double sum(int64_t count, double* memory, Term term) const {
    double own = 0.0;
    for_each(count, [&](int64_t i) { own += term(i); });
    return block_sum(own, memory);
  }

  // Every thread computes the whole sum. `term` may read memory[i].
  template <class Term>
  __device__ double ordered_sum(int64_t count, double* memory, Term term) const {
    for_each(count, [&](int64_t i) { memory[i] = term(i); });
    barrier();
    double total = 0.0;
    for (int64_t i = 0; i < count; ++i) total += memory[i];
    barrier();  // before `memory` is reused
    return total;
  }

  template <class Value>
  __device__ void multiply(const float* matrix, int64_t size, const Value* vector,
                           double* product) const {
    barrier();  // the vector is visible to all threads
    for_each(size, [&](int64_t i) {
      double sum = 0.0;
      for (int64_t k = 0; k < size; ++k) sum += matrix[k * size + i] * double{vector[k]};
      product[i] = sum;
    });
    barrier();
  }
};

}  // namespace pyinv
