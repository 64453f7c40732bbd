// A convolution as sums over taps. Output pixel (offset + step * i) of a phase is the sum over the
// phase's taps of input pixel (in_step * i + shift) times the tap's weights. A convolution is one
// phase; a transposed convolution has stride x stride phases, each with its part of the kernel.
#pragma once

#include <cstddef>
#include <vector>

#include "convolution.h"

namespace pyinv::ops {

struct Tap {
  std::ptrdiff_t shift_y, shift_x;
  std::size_t kernel_y, kernel_x;
};

struct Phase {
  std::size_t offset_y = 0, offset_x = 0;
  std::size_t step_y = 1, step_x = 1;
  std::size_t in_step_y = 1, in_step_x = 1;
  std::vector<Tap> taps;

  static std::size_t count(std::size_t size, std::size_t offset, std::size_t step) {
    return size > offset ? (size - offset + step - 1) / step : 0;
  }
  std::size_t rows(std::size_t height) const { return count(height, offset_y, step_y); }
  std::size_t columns(std::size_t width) const { return count(width, offset_x, step_x); }
};

std::vector<Phase> phases(const ConvolutionAttributes&);

}  // namespace pyinv::ops
