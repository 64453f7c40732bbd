// For the CUDA sources: sums over the threads of a block.
#pragma once

#include <cuda_runtime.h>

namespace pyinv {

// Returns the block's sum to all its threads, always added in the same order. `shared` has one
// value per thread; the number of threads is a power of two.
__device__ inline double block_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  const double sum = shared[0];
  __syncthreads();  // before `shared` is reused
  return sum;
}

}  // namespace pyinv
