#include "taps.h"

namespace pyinv::ops {
namespace {

struct Line {
  std::ptrdiff_t shift;
  std::size_t kernel;
};

// One dimension of a phase of a transposed convolution: out = stride * in + kernel - pad.
std::vector<Line> transposed_line(std::size_t offset, std::size_t kernel_size, std::size_t stride,
                                  std::ptrdiff_t pad) {
  std::vector<Line> line;
  for (std::size_t kernel = 0; kernel < kernel_size; ++kernel) {
    const std::ptrdiff_t distance =
        static_cast<std::ptrdiff_t>(offset) + pad - static_cast<std::ptrdiff_t>(kernel);
    const auto step = static_cast<std::ptrdiff_t>(stride);
    if (distance % step == 0) line.push_back({distance / step, kernel});
  }
  return line;
}

}  // namespace

std::vector<Phase> phases(const ConvolutionAttributes& a) {
  std::vector<Phase> all;
  if (!a.transposed) {
    Phase phase;
    phase.in_step_y = a.stride_height;
    phase.in_step_x = a.stride_width;
    for (std::size_t y = 0; y < a.kernel_height; ++y) {
      for (std::size_t x = 0; x < a.kernel_width; ++x) {
        phase.taps.push_back({static_cast<std::ptrdiff_t>(y) - a.pad_top,
                              static_cast<std::ptrdiff_t>(x) - a.pad_left, y, x});
      }
    }
    all.push_back(phase);
    return all;
  }
  for (std::size_t y = 0; y < a.stride_height; ++y) {
    for (std::size_t x = 0; x < a.stride_width; ++x) {
      Phase phase;
      phase.offset_y = y;
      phase.offset_x = x;
      phase.step_y = a.stride_height;
      phase.step_x = a.stride_width;
      for (const Line& row : transposed_line(y, a.kernel_height, a.stride_height, a.pad_top)) {
        for (const Line& column : transposed_line(x, a.kernel_width, a.stride_width, a.pad_left)) {
          phase.taps.push_back({row.shift, column.shift, row.kernel, column.kernel});
        }
      }
      all.push_back(phase);
    }
  }
  return all;
}

}  // namespace pyinv::ops
