// For the CUDA sources: what the threads of a block add up.
#pragma once

#include <cuda_runtime.h>

namespace pyinv {

// The block's sum, to all its threads, in the same order every time. `shared` holds a value for
// each of them, a power of two.
__device__ inline double block_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  const double sum = shared[0];
  __syncthreads();  // before `shared` is used again
  return sum;
}

}  // namespace pyinv
