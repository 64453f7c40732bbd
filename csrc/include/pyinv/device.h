// The device that holds a run's lanes and computes its objectives.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "pyinv/api.h"

namespace pyinv {

enum class DeviceKind : int32_t { cpu, cuda };

// The CPU, or a GPU and a stream on it. Runs and objectives that share a Device put all their work
// into that stream, in order. The objectives of a run must share one Device.
class PYINV_API Device {
 public:
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  virtual int index() const = 0;     // CUDA's index of the GPU; 0 on the CPU
  virtual void* stream() const = 0;  // a cudaStream_t; null on the CPU
  // Waits for the work in the stream. Throws std::runtime_error if any of it failed.
  virtual void synchronize() const = 0;
  // Makes this GPU current in the calling thread and blocks other callers until the returned handle
  // is destroyed. Call it before using the stream; run() does. Null on the CPU.
  virtual std::shared_ptr<void> exclusive() = 0;
};

// The device does not exist, or this build cannot use it.
class PYINV_API DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device does not have enough memory. Fewer lanes need less.
class PYINV_API OutOfMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

PYINV_API std::shared_ptr<Device> cpu_device();
// The instructions that the operators on the CPU use: "avx512", "avx2" or "portable"; the best that
// the processor has, or that the environment variable PYINV_MAX_CPU_ISA allows.
PYINV_API const char* cpu_isa();

// A new stream on GPU `index`. Throws DeviceError.
PYINV_API std::shared_ptr<Device> cuda_device(int index = 0);

PYINV_API bool built_with_cuda();
PYINV_API int cuda_device_count();  // 0 without CUDA, a driver or a GPU
PYINV_API std::string cuda_device_name(int index);

}  // namespace pyinv
