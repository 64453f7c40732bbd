// Dense linear algebra on the CPU, for a matrix whose lower triangle is packed by rows.
// cholesky_cuda.h is the GPU counterpart. Both round identically, because each element adds its
// terms in the same order. The loops differ: a single thread is fastest with inner loops over
// adjacent memory, a block with as many independent elements at a time as it has threads.
#pragma once

#include <cmath>
#include <cstdint>

#include "solvers/trial.h"

namespace pyinv {

// The offset of row i of the packed triangle.
PYINV_HOST_DEVICE inline int64_t packed_row(int64_t i) { return i * (i + 1) / 2; }

// factor[i, j] = element(i, j) for j <= i.
template <class Element>
void fill_triangle(const SoloTeam&, int64_t d, double* factor, Element element) {
  for (int64_t i = 0; i < d; ++i) {
    double* row = factor + packed_row(i);
    for (int64_t j = 0; j <= i; ++j) row[j] = element(i, j);
  }
}

// Computes the Cholesky factor in place; false if the matrix is not positive definite. `column` is
// scratch for d doubles. Works by columns, so that the inner loop's elements are independent.
inline bool factorise(const SoloTeam&, int64_t d, double* factor, double* column) {
  for (int64_t k = 0; k < d; ++k) {
    double& pivot = factor[packed_row(k) + k];
    if (!is_positive(pivot)) return false;
    pivot = std::sqrt(pivot);
    for (int64_t i = k + 1; i < d; ++i) {
      double* row = factor + packed_row(i);
      const double scale = column[i] = row[k] /= pivot;
      for (int64_t j = k + 1; j <= i; ++j) row[j] -= scale * column[j];
    }
  }
  return true;
}

// Solves L L^T x = b for the factor L. On entry x holds b.
inline void substitute(const SoloTeam&, int64_t d, const double* factor, double* x) {
  for (int64_t i = 0; i < d; ++i) {
    const double* row = factor + packed_row(i);
    for (int64_t k = 0; k < i; ++k) x[i] -= row[k] * x[k];
    x[i] /= row[i];
  }
  for (int64_t k = d - 1; k >= 0; --k) {
    const double* row = factor + packed_row(k);
    x[k] /= row[k];
    for (int64_t i = 0; i < k; ++i) x[i] -= row[i] * x[k];
  }
}

// product = matrix x, for a symmetric matrix with both triangles stored.
inline void multiply(const SoloTeam&, int64_t d, const float* matrix, const double* x,
                     double* product) {
  for (int64_t i = 0; i < d; ++i) product[i] = 0.0;
  for (int64_t j = 0; j < d; ++j) {
    const float* column = matrix + j * d;
    for (int64_t i = 0; i < d; ++i) product[i] += column[i] * x[j];
  }
}

}  // namespace pyinv
