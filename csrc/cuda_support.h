// Helpers for calling the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyinv {

// Throws an exception with CUDA's message if a call failed.
inline void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // otherwise a later call would report this error again
  throw std::runtime_error(std::string("CUDA: ") + call + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

// A block's number of threads, and the bytes of its dynamic shared memory.
struct Block {
  Block(unsigned threads, size_t shared_memory = 0)
      : threads(threads), shared_memory(shared_memory) {}
  unsigned threads;
  size_t shared_memory;
};

#ifdef __CUDACC__
__device__ inline double* dynamic_shared_memory() {
  extern __shared__ double memory[];
  return memory;
}
#endif

// Launches a kernel in a stream. The arguments are copied.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, const Block& block,
            cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(block.threads);
  config.dynamicSmemBytes = block.shared_memory;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

// The number of blocks of `size` threads that cover `count` items. A grid's x has at most 2^31 - 1
// blocks, more than any GPU's memory can use.
inline unsigned blocks_for(int64_t count, int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

// The number of threads of a block for `count` items: a power of two, at least a warp.
inline unsigned threads_for(int64_t count, unsigned most) {
  unsigned threads = 32;
  while (threads < most && threads < count) threads *= 2;
  return threads;
}

// cudaSuccess if the build has machine code for the current device.
cudaError_t kernels_run_here();

}  // namespace pyinv
