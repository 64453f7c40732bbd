// Replaces the CUDA sources in a build without a CUDA compiler.
#include "pyinv/device.h"

namespace pyinv {

std::shared_ptr<Device> cuda_device(int) {
  throw DeviceError(
      "this build of pyinv has no CUDA; build it where nvcc is found, or use the CPU");
}

bool built_with_cuda() { return false; }
int cuda_device_count() { return 0; }
std::string cuda_device_name(int) { return {}; }

}  // namespace pyinv
