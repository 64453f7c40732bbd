#include <algorithm>

#include "cuda_support.h"
#include "kernels/kernels.h"

namespace pyinv {
namespace {

constexpr unsigned kMaxThreads = 256;  // a power of two, like every block size
constexpr int64_t kValuesPerThread = 8;

// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances" (1979): no cancellation, however far the mean is from 0.
__device__ PartialMoments merge(const PartialMoments& a, const PartialMoments& b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double count = a.count + b.count;
  const double apart = b.mean - a.mean;
  return {count, a.mean + apart * (b.count / count),
          a.squares + b.squares + apart * apart * (a.count * (b.count / count))};
}

// Merges the block's moments into shared[0], for its first thread, always in the same order.
__device__ void block_merge(const PartialMoments& own, PartialMoments* shared) {
  shared[threadIdx.x] = own;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      shared[threadIdx.x] = merge(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
  }
}

__global__ void __launch_bounds__(kMaxThreads)
    partial_moments_kernel(const float* values, int64_t count, PartialMoments* partial) {
  __shared__ PartialMoments shared[kMaxThreads];
  PartialMoments own = {0.0, 0.0, 0.0};
  const int64_t start = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  if (start < count) {
    // Sum differences from a value of the sample, to avoid cancellation with its mean.
    const double origin = values[start];
    double sum = 0.0, squares = 0.0;
    for (int64_t i = start; i < count; i += stride) {
      const double difference = values[i] - origin;
      sum += difference;
      squares += difference * difference;
      own.count += 1.0;
    }
    own.mean = origin + sum / own.count;
    own.squares = squares - sum * (sum / own.count);
  }
  block_merge(own, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = shared[0];
}

// Launched as one block.
__global__ void __launch_bounds__(kMaxThreads)
    merge_moments_kernel(const PartialMoments* partial, int64_t partials, Moments* moments) {
  __shared__ PartialMoments shared[kMaxThreads];
  PartialMoments own = {0.0, 0.0, 0.0};
  for (int64_t i = threadIdx.x; i < partials; i += blockDim.x) own = merge(own, partial[i]);
  block_merge(own, shared);
  if (threadIdx.x > 0) return;
  const PartialMoments& all = shared[0];
  // With rounding, a constant sample may end up slightly below 0.
  *moments = {all.mean, sqrt(all.squares < 0.0 ? 0.0 : all.squares / all.count)};
}

}  // namespace

void batch_moments_cuda(const LaneArrays& lanes, int64_t active, PartialMoments* scratch,
                        CudaStream stream) {
  const int64_t count = active * lanes.latent_size;
  if (count == 0) return;
  const unsigned threads = threads_for(count, kMaxThreads);
  const int64_t blocks =
      std::min<int64_t>(blocks_for(count, threads * kValuesPerThread), kMomentsScratch);
  launch("partial moments kernel", partial_moments_kernel, dim3(static_cast<unsigned>(blocks)),
         threads, stream, static_cast<const float*>(lanes.latent), count, scratch);
  launch("moments kernel", merge_moments_kernel, dim3(1), threads_for(blocks, kMaxThreads), stream,
         static_cast<const PartialMoments*>(scratch), blocks, lanes.batch_moments);
}

}  // namespace pyinv
