// For the CUDA sources: cholesky.h for a block of threads. Every function ends with a barrier.
#pragma once

#include "solvers/block_team.h"
#include "solvers/cholesky.h"

namespace pyinv {

// Distributes the triangle's rows below `first` over warps, and a row's columns over threads.
template <class Do>
__device__ void for_triangle(int64_t first, int64_t d, Do element) {
  constexpr unsigned kWarp = 32;
  const int64_t warps = blockDim.x / kWarp;
  for (int64_t i = first + threadIdx.x / kWarp; i < d; i += warps) {
    for (int64_t j = first + threadIdx.x % kWarp; j <= i; j += kWarp) element(i, j);
  }
}

template <class Element>
__device__ void fill_triangle(const BlockTeam& team, int64_t d, double* factor, Element element) {
  for_triangle(0, d, [&](int64_t i, int64_t j) { factor[packed_row(i) + j] = element(i, j); });
  team.barrier();
}

__device__ inline bool factorise(const BlockTeam& team, int64_t d, double* factor, double* column) {
  for (int64_t k = 0; k < d; ++k) {
    const double pivot = factor[packed_row(k) + k];
    if (!is_positive(pivot)) return false;
    const double root = sqrt(pivot);
    for (int64_t i = k + 1 + threadIdx.x; i < d; i += blockDim.x) {
      column[i] = factor[packed_row(i) + k] /= root;
    }
    team.barrier();
    if (team.is_leader()) factor[packed_row(k) + k] = root;
    for_triangle(k + 1, d,
                 [&](int64_t i, int64_t j) { factor[packed_row(i) + j] -= column[i] * column[j]; });
    team.barrier();
  }
  return true;
}

__device__ inline void substitute(const BlockTeam& team, int64_t d, const double* factor,
                                  double* x) {
  for (int64_t k = 0; k < d; ++k) {
    const double solved = x[k] / factor[packed_row(k) + k];
    for (int64_t i = k + 1 + threadIdx.x; i < d; i += blockDim.x) {
      x[i] -= factor[packed_row(i) + k] * solved;
    }
    team.barrier();
    if (team.is_leader()) x[k] = solved;
  }
  team.barrier();
  for (int64_t k = d - 1; k >= 0; --k) {
    const double solved = x[k] / factor[packed_row(k) + k];
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
      x[i] -= factor[packed_row(k) + i] * solved;
    }
    team.barrier();
    if (team.is_leader()) x[k] = solved;
  }
  team.barrier();
}

__device__ inline void multiply(const BlockTeam& team, int64_t d, const float* matrix,
                                const double* x, double* product) {
  team.for_each(d, [&](int64_t i) {
    double sum = 0.0;
    for (int64_t j = 0; j < d; ++j) sum += matrix[j * d + i] * x[j];
    product[i] = sum;
  });
  team.barrier();
}

}  // namespace pyinv
