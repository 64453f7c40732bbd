// The workers that run a solver on one lane. On the CPU a team is a single thread (SoloTeam), on a
// GPU the threads of a block (BlockTeam, in block_team.h). Both have
//
//   for_each(count, element)        element(i) for all i; a worker gets the same i in every call
//   barrier()                       makes writes before it visible to all workers after it
//   all(holds)                      whether `holds` is true for every worker; a barrier
//   is_leader()                     true for one worker, which writes the lane's state
//   sum(count, memory, term)        the sum for every worker; fast, in an order that depends on the
//                                   device
//   ordered_sum(count, memory, term)
//                                   the sum for every worker, in the order of i on every device
//   multiply(matrix, size, vector, product)
//                                   the product of a symmetric matrix [size, size]; two barriers
//
// `memory` is the team's near memory: kMaxWorkers doubles for sum(), `count` for ordered_sum().
// Sums are barriers. A sum in a fixed order is sequential: that is fine for the few hundred
// components of a matrix's row, but slow for latents of any length.
#pragma once

#include <cstdint>

// Code for one device: the GPU where nvcc compiles it, the CPU everywhere else.
#ifdef __CUDACC__
#define PYINV_DEVICE __device__
#else
#define PYINV_DEVICE
#endif

namespace pyinv {

constexpr int64_t kMaxWorkers = 512;  // a power of two

class SoloTeam {
 public:
  template <class Do>
  void for_each(int64_t count, Do element) const {
    for (int64_t i = 0; i < count; ++i) element(i);
  }
  void barrier() const {}
  bool all(bool holds) const { return holds; }
  bool is_leader() const { return true; }

  // Keep several partial sums: each addition waits for the previous one, and latents may be long.
  template <class Term>
  double sum(int64_t count, double*, Term term) const {
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

  template <class Term>
  double ordered_sum(int64_t count, double*, Term term) const {
    double total = 0.0;
    for (int64_t i = 0; i < count; ++i) total += term(i);
    return total;
  }

  template <class Value>
  void multiply(const float* matrix, int64_t size, const Value* vector, double* product) const {
    for (int64_t i = 0; i < size; ++i) product[i] = 0.0;
    for (int64_t k = 0; k < size; ++k) {
      const float* row = matrix + k * size;
      const double value = vector[k];
      for (int64_t i = 0; i < size; ++i) product[i] += row[i] * value;
    }
  }
};

}  // namespace pyinv
