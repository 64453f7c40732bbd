#include "pyinv/device.h"

namespace pyinv {
namespace {

class CpuDevice : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::cpu; }
  int index() const override { return 0; }
  void* stream() const override { return nullptr; }
  void synchronize() const override {}
  void use() const override {}
};

}  // namespace

std::shared_ptr<Device> cpu_device() {
  static const auto device = std::make_shared<CpuDevice>();
  return device;
}

}  // namespace pyinv
