// Where a run keeps its lanes and an objective computes.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "pyinv/api.h"

namespace pyinv {

enum class DeviceKind : int32_t { cpu, cuda };

// The CPU, or a GPU with one stream on it: all work of the runs and objectives that share a Device
// goes to that stream, in order. Objectives that one run uses must share theirs.
class PYINV_API Device {
 public:
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  virtual int index() const = 0;     // of the GPU, as CUDA counts; 0 on the CPU
  virtual void* stream() const = 0;  // a cudaStream_t; null on the CPU
  // Waits for the work in the stream. Throws std::runtime_error if some of it failed.
  virtual void synchronize() const = 0;
  // Until what is returned is gone, this GPU is current in the calling thread, and other threads
  // that ask wait. Whatever uses the stream asks first; run() does. Null on the CPU.
  virtual std::shared_ptr<void> exclusive() = 0;
};

// The device is not there, or this build cannot use it.
class PYINV_API DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device's memory does not hold what was asked for; fewer lanes need less.
class PYINV_API OutOfMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

PYINV_API std::shared_ptr<Device> cpu_device();

// A new stream on GPU `index`. Throws DeviceError.
PYINV_API std::shared_ptr<Device> cuda_device(int index = 0);

PYINV_API bool built_with_cuda();
PYINV_API int cuda_device_count();  // 0 without CUDA, without a driver and without a GPU
PYINV_API std::string cuda_device_name(int index);

}  // namespace pyinv
