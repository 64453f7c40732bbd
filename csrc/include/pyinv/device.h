// Where a run keeps its lanes and an objective computes.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace pyinv {

enum class DeviceKind : int32_t { cpu, cuda };

// The CPU, or a GPU with one stream on it: all work of the runs and objectives that share a Device
// goes to that stream, in order. Objectives that one run uses must share theirs.
class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  virtual int index() const = 0;     // of the GPU, as CUDA counts; 0 on the CPU
  virtual void* stream() const = 0;  // a cudaStream_t; null on the CPU
  // Waits for the work in the stream. Throws std::runtime_error if some of it failed.
  virtual void synchronize() const = 0;
  // Makes this device current in the calling thread, as libraries that have such a notion expect.
  virtual void use() const = 0;
};

// The device is not there, or this build cannot use it.
class DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device's memory does not hold what was asked for; fewer lanes need less.
class OutOfMemory : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::shared_ptr<Device> cpu_device();

// A new stream on GPU `index`. Throws DeviceError.
std::shared_ptr<Device> cuda_device(int index = 0);

bool built_with_cuda();
int cuda_device_count();  // 0 without CUDA, without a driver and without a GPU
std::string cuda_device_name(int index);

}  // namespace pyinv
