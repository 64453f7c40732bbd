#include "by_target.h"

#include <algorithm>

#include "scratch.h"
#include "taps.h"

namespace pyinv::ops {
namespace {

// One image of a batch.
template <class Float>
Images<Float> image(const Images<Float>& all, std::size_t index) {
  Images<Float> one = all;
  one.data += all.offset(index, 0, 0);
  one.batch = 1;
  return one;
}

struct ChannelsFirst {};
struct ChannelsLast {};
struct Pixels {};
struct Sums {};

// An image with the other layout, in this thread's scratch memory.
template <class Owner>
const float* other_layout(const Images<const float>& from) {
  const std::size_t pixels = from.height * from.width;
  const std::size_t rows = from.channels_first ? from.channels : pixels;
  const std::size_t columns = from.channels_first ? pixels : from.channels;
  float* to = scratch<Owner>(rows * columns);
  for (std::size_t column = 0; column < columns; ++column) {
    for (std::size_t row = 0; row < rows; ++row) {
      to[column * rows + row] = from.data[row * columns + column];
    }
  }
  return to;
}

}  // namespace

void convolve_by_target(const ConvolutionAttributes& attributes, const Images<const float>& in,
                        const float* weights, const Images<float>& out, const Parallel& parallel) {
  const std::size_t size = attributes.in_channels * attributes.out_channels *
                           attributes.kernel_height * attributes.kernel_width;
  const auto convolve = [&](std::size_t index, const Parallel& inside) {
    Convolution(attributes, weights + index * size, nullptr)
        .run(image(in, index), nullptr, image(out, index), inside);
  };
  if (in.batch == 1) {
    convolve(0, parallel);
  } else {
    parallel.for_each(in.batch, [&](std::size_t index) { convolve(index, {}); });
  }
}

// A matrix product per image: rows are output channels, the summed dimension is the output's
// pixels, columns are a tap's input channels. A register's columns are packed for a block of pixels
// at a time, which stays in the first-level cache.
void weight_gradient(const ConvolutionAttributes& attributes, const Images<const float>& in,
                     const Images<const float>& gradient, float* out, const Parallel& parallel) {
  constexpr std::size_t pixels_in_block = 256;
  const std::size_t in_channels = in.channels, out_channels = gradient.channels;
  const Kernels& kernel = kernels(in_channels);
  const std::size_t pixels = gradient.height * gradient.width;
  const Phase phase = phases(attributes).front();
  const std::size_t taps = phase.taps.size();
  const std::size_t panels = (in_channels + kernel.panel - 1) / kernel.panel;

  for (std::size_t index = 0; index < in.batch; ++index) {
    const Images<const float> own_in = image(in, index), own_gradient = image(gradient, index);
    const float* source = in.channels_first ? other_layout<ChannelsLast>(own_in) : own_in.data;
    const float* slopes =
        gradient.channels_first ? own_gradient.data : other_layout<ChannelsFirst>(own_gradient);
    float* weights = out + index * out_channels * in_channels * taps;

    parallel.for_each(panels * taps, [&](std::size_t task) {
      const std::size_t tap_index = task / panels, channel = task % panels * kernel.panel;
      const std::size_t channels = std::min(kernel.panel, in_channels - channel);
      const Tap& tap = phase.taps[tap_index];
      float* packed = scratch<Pixels>(pixels_in_block * kernel.panel);
      float* sums = scratch<Sums>(out_channels * kernel.panel);
      std::fill_n(sums, out_channels * kernel.panel, 0.0f);
      std::vector<const float*> rows(out_channels);
      for (std::size_t first = 0; first < pixels; first += pixels_in_block) {
        const std::size_t count = std::min(pixels_in_block, pixels - first);
        std::fill_n(packed, count * kernel.panel, 0.0f);
        for (std::size_t pixel = 0; pixel < count; ++pixel) {
          // A negative coordinate becomes a huge unsigned one, so one comparison checks both ends.
          const std::size_t y = (first + pixel) / gradient.width * phase.in_step_y +
                                static_cast<std::size_t>(tap.shift_y);
          const std::size_t x = (first + pixel) % gradient.width * phase.in_step_x +
                                static_cast<std::size_t>(tap.shift_x);
          if (y >= in.height || x >= in.width) continue;
          std::copy_n(source + (y * in.width + x) * in_channels + channel, channels,
                      packed + pixel * kernel.panel);
        }
        for (std::size_t o = 0; o < out_channels; ++o) rows[o] = slopes + o * pixels + first;
        kernel.multiply(rows.data(), out_channels, count, packed, 1, 0, sums, kernel.panel, true);
      }
      for (std::size_t o = 0; o < out_channels; ++o) {
        for (std::size_t i = 0; i < channels; ++i) {
          weights[(o * in_channels + channel + i) * taps + tap_index] = sums[o * kernel.panel + i];
        }
      }
    });
  }
}

}  // namespace pyinv::ops
