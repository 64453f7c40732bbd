// How the CUDA sources call the runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyinv {

// Throws what CUDA says of a call that failed.
inline void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next call that asks reports this error once more
  throw std::runtime_error(std::string("CUDA: ") + call + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

// A block's threads, and bytes of shared memory beside what its kernel declares.
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

// Puts a kernel into a stream. The arguments travel with it.
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

// Blocks of `size` threads that cover `count` things. A grid's x holds 2^31 - 1 of them, which the
// memory of no GPU comes near to.
inline unsigned blocks_for(int64_t count, int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

// Threads of a block that shares out `count` things: a power of two, at least a warp.
inline unsigned threads_for(int64_t count, unsigned most) {
  unsigned threads = 32;
  while (threads < most && threads < count) threads *= 2;
  return threads;
}

// cudaSuccess if the build holds machine code that the current device runs.
cudaError_t kernels_run_here();

}  // namespace pyinv
