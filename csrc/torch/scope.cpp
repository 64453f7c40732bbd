#include "torch/scope.h"

#include <ATen/Parallel.h>

#include <condition_variable>
#include <mutex>

namespace pyinv::torchscript {
namespace {

using at::Float32Backend;
using at::Float32MatmulPrecision;
using at::Float32Op;
using at::Float32Precision;

// The settings that Tf32Scope changes. Matrix products have an older setting in addition to the one
// that they share with convolutions. Within a call the two must agree.
struct Precision {
  Float32Precision convolution, product;
  Float32MatmulPrecision older;

  static Precision now() {
    const at::Context& context = at::globalContext();
    return {context.float32Precision(Float32Backend::CUDA, Float32Op::CONV),
            context.float32Precision(Float32Backend::CUDA, Float32Op::MATMUL), older_now()};
  }

  static Precision for_tf32(bool tf32) {
    const Float32Precision both = tf32 ? Float32Precision::TF32 : Float32Precision::IEEE;
    return {both, both, tf32 ? Float32MatmulPrecision::HIGH : Float32MatmulPrecision::HIGHEST};
  }

  void set() const {
    at::Context& context = at::globalContext();
    if (older == Float32MatmulPrecision::MEDIUM) {
      context.setFloat32MatmulPrecision("medium");
    } else {
      context.setAllowTF32CuBLAS(older == Float32MatmulPrecision::HIGH);
    }
    context.setFloat32Precision(Float32Backend::CUDA, Float32Op::MATMUL, product);
    context.setFloat32Precision(Float32Backend::CUDA, Float32Op::CONV, convolution);
  }

 private:
  static Float32MatmulPrecision older_now() {
    try {
      return at::globalContext().float32MatmulPrecision();
    } catch (const c10::Error&) {  // the newer setting is TF32, and this one was not changed
      return Float32MatmulPrecision::HIGHEST;
    }
  }
};

std::mutex precision_mutex;
std::condition_variable precision_free;
int precision_users = 0;
bool precision_tf32 = false;
Precision precision_before{};

}  // namespace

c10::Device to_torch(const Device& device) {
  if (device.kind() == DeviceKind::cpu) return c10::Device(c10::kCPU);
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device.index()));
}

ThreadsScope::ThreadsScope(int threads) : threads_(threads), before_(at::get_num_threads()) {
  if (before_ != threads_) at::set_num_threads(threads_);
}

ThreadsScope::~ThreadsScope() {
  if (before_ != threads_) at::set_num_threads(before_);
}

Tf32Scope::Tf32Scope(bool allowed) {
  std::unique_lock lock(precision_mutex);
  precision_free.wait(lock, [&] { return !precision_users || precision_tf32 == allowed; });
  if (!precision_users) {
    precision_before = Precision::now();
    Precision::for_tf32(allowed).set();
    precision_tf32 = allowed;
  }
  ++precision_users;
}

Tf32Scope::~Tf32Scope() {
  const std::lock_guard lock(precision_mutex);
  if (--precision_users) return;
  precision_before.set();
  precision_free.notify_all();
}

CallScope::CallScope(const RuntimeOptions& options) {
  if (options.device->kind() == DeviceKind::cpu) {
    threads_.emplace(options.threads);
    return;
  }
  exclusive_ = options.device->exclusive();
  // torch identifies an external stream by its handle.
  const auto id = reinterpret_cast<c10::StreamId>(options.device->stream());
  stream_.emplace(c10::Stream(c10::Stream::UNSAFE, to_torch(*options.device), id));
  precision_.emplace(options.tf32);
}

}  // namespace pyinv::torchscript
