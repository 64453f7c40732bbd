// Working memory that a thread reuses between calls. Allocating megabytes from the system in every
// layer of every step would take longer than the transforms that fill them.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace pyinv::ops {

class Buffer {
 public:
  // Returns at least `floats` floats, aligned to a cache line. Previous contents may be lost.
  float* at_least(std::size_t floats) {
    if (floats > size_) {
      data_.reset();
      data_.reset(static_cast<float*>(::operator new(floats * sizeof(float), alignment)));
      size_ = floats;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, alignment); }
  };
  std::unique_ptr<float, Free> data_;
  std::size_t size_ = 0;
};

// One buffer per thread and Owner, where Owner is any type that identifies the use.
template <class Owner>
float* scratch(std::size_t floats) {
  thread_local Buffer buffer;
  return buffer.at_least(floats);
}

}  // namespace pyinv::ops
