// Working memory that a thread keeps from one call to the next: asking the system for megabytes
// anew in every layer of every step costs more time than the transforms that fill them.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace pyinv::ops {

class Buffer {
 public:
  // At least `floats` floats on a cache line's boundary. What they held before may be gone.
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

// One buffer a thread and Owner; Owner is any type that names the use.
template <class Owner>
float* scratch(std::size_t floats) {
  thread_local Buffer buffer;
  return buffer.at_least(floats);
}

}  // namespace pyinv::ops
