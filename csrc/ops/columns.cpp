// For few output channels, such as an image's three: a product with so few columns would leave most
// of each register idle. Instead every input pixel is multiplied by the weights of all taps at once
// (taps x channels columns), and each output row then adds up the products that contribute to it.
//
// Written for transposed convolution, where input pixel i contributes to outputs stride * i + tap -
// pad. Its taps along a row are consecutive floats of consecutive output pixels, so they are added
// in blocks of stride x channels floats. A convolution with stride 1 is the same with the kernel
// flipped.
#include <algorithm>

#include "convolution.h"
#include "scratch.h"

namespace pyinv::ops {
namespace {

constexpr std::size_t rows_in_task = 192;
constexpr std::size_t lines_in_task = 8;
constexpr std::size_t slack = 16;  // floats read or written beyond the end, at most a register
// Floats of products at a time, which fit in a small machine's last-level cache beside the rest.
constexpr std::size_t products_at_once = 1 << 20;

class Columns : public Algorithm {
 public:
  Columns(const ConvolutionAttributes& a, const float* data)
      : in_channels_(a.in_channels),
        out_channels_(a.out_channels),
        kernel_height_(a.kernel_height),
        stride_height_(a.stride_height),
        stride_width_(a.stride_width),
        block_(a.stride_width * a.out_channels),
        pieces_((a.kernel_width + a.stride_width - 1) / a.stride_width),
        skip_top_(a.transposed ? a.pad_top : to_signed(a.kernel_height) - 1 - a.pad_top),
        skip_left_(a.transposed ? a.pad_left : to_signed(a.kernel_width) - 1 - a.pad_left) {
    const Weights weights(data, a);
    const std::size_t row = pieces_ * block_;
    kernels_ = &kernels(kernel_height_ * row);
    const std::size_t panel = kernels_->panel;
    panels_ = (kernel_height_ * row + panel - 1) / panel;
    float* to = packed_.at_least(panels_ * in_channels_ * panel);
    weights_ = to;
    for (std::size_t first = 0; first < panels_ * panel; first += panel) {
      for (std::size_t in = 0; in < in_channels_; ++in) {
        for (std::size_t column = first; column < first + panel; ++column) {
          const std::size_t y = column / row, x = column % row / out_channels_;
          const std::size_t out = column % out_channels_;
          const bool used = y < kernel_height_ && x < a.kernel_width;
          *to++ = used ? weights.at(out, in, y, x, !a.transposed) : 0.0f;
        }
      }
    }
  }

  void run(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
           const Parallel& parallel) const override {
    const Kernels& kernel = *kernels_;
    const std::size_t width = panels_ * kernel.panel;
    const std::size_t pixels = in.height * in.width;
    const std::size_t share =
        std::clamp<std::size_t>(products_at_once / (pixels * width), 1, in.batch);
    float* products = scratch<Columns>(share * pixels * width + slack);
    for (std::size_t first = 0; first < in.batch; first += share) {
      const std::size_t images = std::min(share, in.batch - first);
      const std::size_t rows = images * pixels;
      const float* from = in.data + in.offset(first, 0, 0);
      parallel.for_each((rows + rows_in_task - 1) / rows_in_task, [&](std::size_t task) {
        const std::size_t row = task * rows_in_task;
        const std::size_t count = std::min(rows_in_task, rows - row);
        const float* lines[rows_in_task];
        for (std::size_t each = 0; each < count; ++each) {
          lines[each] = from + (row + each) * in_channels_;
        }
        kernel.multiply(lines, count, in_channels_, weights_, panels_, in_channels_ * kernel.panel,
                        products + row * width, width, false);
      });
      const std::size_t bands = (out.height + lines_in_task - 1) / lines_in_task;
      parallel.for_each(images * bands, [&](std::size_t task) {
        const std::size_t image = task / bands, band = task % bands * lines_in_task;
        const std::size_t last = std::min(out.height, band + lines_in_task);
        for (std::size_t y = band; y < last; ++y) {
          write_line(products + image * pixels * width, width, in, first + image, y, out, epilogue);
        }
      });
    }
  }

 private:
  struct Line {};

  // Computes one row of an output image.
  void write_line(const float* products, std::size_t width, const Images<const float>& in,
                  std::size_t image, std::size_t y, const Images<float>& out,
                  const Epilogue& epilogue) const {
    const std::size_t channels = out_channels_;
    const std::size_t blocks = in.width + pieces_ - 1;
    std::vector<const float*> rows;
    for (std::size_t tap = 0; tap < kernel_height_; ++tap) {
      const std::ptrdiff_t distance = to_signed(y) + skip_top_ - to_signed(tap);
      const std::ptrdiff_t row = distance / to_signed(stride_height_);
      if (distance < 0 || row * to_signed(stride_height_) != distance) continue;
      if (static_cast<std::size_t>(row) >= in.height) continue;
      rows.push_back(products + static_cast<std::size_t>(row) * in.width * width +
                     tap * pieces_ * block_);
    }
    float* line = scratch<Line>(blocks * block_ + slack);
    kernels_->gather({rows.data(), rows.size(), in.width, width, block_, pieces_, line});

    // Output padding, and padding larger than the kernel, give outputs without any input.
    const std::ptrdiff_t end = to_signed(blocks * stride_width_) - skip_left_;
    const auto first_x = static_cast<std::size_t>(std::max<std::ptrdiff_t>(-skip_left_, 0));
    const auto last_x =
        std::min(out.width, static_cast<std::size_t>(std::max<std::ptrdiff_t>(end, 0)));
    const std::size_t stride = out.channel_stride();
    const std::size_t start = out.offset(image, y, 0);
    const std::size_t step = out.channels_first ? 1 : channels;
    for (std::size_t channel = 0; channel < channels; ++channel) {
      const float bias = epilogue.bias ? epilogue.bias[channel] : 0.0f;
      float* to = out.data + start + channel * stride;
      const float* from = line + skip_left_ * to_signed(channels) + to_signed(channel);
      if (first_x > 0 || last_x < out.width) {
        for (std::size_t x = 0; x < out.width; ++x) to[x * step] = bias;
      }
      for (std::size_t x = first_x; x < last_x; ++x) to[x * step] = from[x * channels] + bias;
      if (epilogue.activation == Activation::none && !epilogue.operand) continue;
      const float* operand = epilogue.operand_at(image, start + channel * stride);
      if (operand && epilogue.is_factor) {
        for (std::size_t x = 0; x < out.width; ++x) to[x * step] *= operand[x * step];
        continue;
      }
      for (std::size_t x = 0; x < out.width; ++x) {
        const float sum = to[x * step];
        const bool keep = operand ? operand[x * step] > 0.0f : !(sum < 0.0f);
        if (!keep) to[x * step] = epilogue.slope == 0.0f ? 0.0f : sum * epilogue.slope;
      }
    }
  }

  std::size_t in_channels_, out_channels_, kernel_height_, stride_height_, stride_width_;
  std::size_t block_, pieces_;
  std::ptrdiff_t skip_top_, skip_left_;  // outputs that padding removes
  const Kernels* kernels_ = nullptr;
  std::size_t panels_ = 0;
  Buffer packed_;
  const float* weights_ = nullptr;
};

}  // namespace

std::unique_ptr<Algorithm> make_columns(const ConvolutionAttributes& attributes,
                                        const float* weights) {
  return std::make_unique<Columns>(attributes, weights);
}

}  // namespace pyinv::ops
