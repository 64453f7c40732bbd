// For few input channels, such as the gradient with respect to an image's three: the sum over a
// single tap's channels is too short to be efficient. The input is copied once into images with
// channels last and explicit padding, in which a row of the kernel reads consecutive floats. A few
// such copies then form a whole row of the matrix product.
//
// A transposed convolution with stride 1 is the same with the kernel flipped.
#include <algorithm>
#include <cstring>

#include "convolution.h"
#include "scratch.h"

namespace pyinv::ops {
namespace {

constexpr std::size_t rows_in_block = 48;
// Floats copied at once: every 64-bit processor can move this many in one instruction.
constexpr std::size_t copied = 4;
// Floats of padded images at a time, which fit in the last-level cache.
constexpr std::size_t padded_at_once = 1 << 20;

class Patches : public Algorithm {
 public:
  Patches(const ConvolutionAttributes& a, const float* data)
      : channels_(a.in_channels),
        out_channels_(a.out_channels),
        kernel_height_(a.kernel_height),
        kernel_width_(a.kernel_width),
        stride_height_(a.stride_height),
        stride_width_(a.stride_width),
        pad_top_(a.transposed ? to_signed(a.kernel_height) - 1 - a.pad_top : a.pad_top),
        pad_left_(a.transposed ? to_signed(a.kernel_width) - 1 - a.pad_left : a.pad_left),
        depth_(a.kernel_height * a.kernel_width * a.in_channels) {
    const Weights weights(data, a);
    kernels_ = &kernels(out_channels_);
    const std::size_t panel = kernels_->panel;
    panels_ = (out_channels_ + panel - 1) / panel;
    float* to = packed_.at_least(panels_ * panel * depth_);
    weights_ = to;
    for (std::size_t first = 0; first < panels_ * panel; first += panel) {
      for (std::size_t k = 0; k < depth_; ++k) {
        const std::size_t tap = k / channels_, in = k % channels_;
        const std::size_t y = tap / kernel_width_, x = tap % kernel_width_;
        for (std::size_t out = first; out < first + panel; ++out) {
          *to++ = out < out_channels_ ? weights.at(out, in, y, x, a.transposed) : 0.0f;
        }
      }
    }
  }

  void run(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
           const Parallel& parallel) const override {
    const std::size_t height = (out.height - 1) * stride_height_ + kernel_height_;
    const std::size_t width = (out.width - 1) * stride_width_ + kernel_width_;
    const std::size_t size = height * width * channels_;
    const std::size_t share = std::clamp<std::size_t>(padded_at_once / size, 1, in.batch);
    float* padded = scratch<Patches>(share * size + copied);
    const std::size_t pixels = out.height * out.width;
    for (std::size_t first = 0; first < in.batch; first += share) {
      const std::size_t images = std::min(share, in.batch - first);
      parallel.for_each(images, [&](std::size_t image) {
        pad(in, first + image, height, width, padded + image * size);
      });
      const std::size_t rows = images * pixels;
      const std::size_t blocks = (rows + rows_in_block - 1) / rows_in_block;
      parallel.for_each(blocks, [&](std::size_t block) {
        run_block(padded, size, width, first, rows * block / blocks, rows * (block + 1) / blocks,
                  out, epilogue);
      });
    }
  }

 private:
  struct Rows {};
  struct Sums {};

  void pad(const Images<const float>& in, std::size_t image, std::size_t height, std::size_t width,
           float* to) const {
    const std::size_t stride = in.channel_stride(), step = in.channels_first ? 1 : channels_;
    const std::ptrdiff_t end = to_signed(in.width) + pad_left_;
    const auto first_x = static_cast<std::size_t>(std::max<std::ptrdiff_t>(pad_left_, 0));
    const auto last_x = std::min(width, static_cast<std::size_t>(std::max<std::ptrdiff_t>(end, 0)));
    std::fill_n(to, height * width * channels_, 0.0f);
    for (std::size_t y = 0; y < height; ++y) {
      const auto in_y = static_cast<std::size_t>(to_signed(y) - pad_top_);
      if (in_y >= in.height) continue;
      for (std::size_t channel = 0; channel < channels_; ++channel) {
        const float* from = in.data + in.offset(image, in_y, 0) + channel * stride;
        float* line = to + y * width * channels_ + channel;
        for (std::size_t x = first_x; x < last_x; ++x) {
          const auto in_x = static_cast<std::size_t>(to_signed(x) - pad_left_);
          line[x * channels_] = from[in_x * step];
        }
      }
    }
  }

  void run_block(const float* padded, std::size_t size, std::size_t width, std::size_t first_image,
                 std::size_t first, std::size_t last, const Images<float>& out,
                 const Epilogue& epilogue) const {
    const Kernels& kernel = *kernels_;
    const std::size_t rows = last - first, columns = panels_ * kernel.panel;
    const std::size_t run = kernel_width_ * channels_;
    float* gathered = scratch<Rows>(rows * depth_ + copied);
    float* sums = scratch<Sums>(rows * columns);
    const float* lines[rows_in_block];
    // Incremented from row to row, because divisions would take as long as the copies.
    std::size_t x = first % out.width;
    std::size_t y = first / out.width % out.height;
    std::size_t image = first / (out.width * out.height);
    for (std::size_t row = 0; row < rows; ++row) {
      const float* from =
          padded + image * size + (y * stride_height_ * width + x * stride_width_) * channels_;
      float* to = gathered + row * depth_;
      lines[row] = to;
      for (std::size_t tap = 0; tap < kernel_height_; ++tap) {
        // Floats copied beyond the end of a run are overwritten by the next copy.
        for (std::size_t at = 0; at < run; at += copied) {
          std::memcpy(to + tap * run + at, from + tap * width * channels_ + at,
                      copied * sizeof(float));
        }
      }
      if (++x < out.width) continue;
      x = 0;
      if (++y < out.height) continue;
      y = 0;
      ++image;
    }
    kernel.multiply(lines, rows, depth_, weights_, panels_, depth_ * kernel.panel, sums, columns,
                    false);
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t pixel = first_image * out.height * out.width + first + row;
      const std::size_t offset = pixel * out_channels_;
      kernel.finish(sums + row * columns, out_channels_, epilogue,
                    epilogue.operand_at(pixel / (out.height * out.width), offset),
                    out.data + offset);
    }
  }

  std::size_t channels_, out_channels_, kernel_height_, kernel_width_, stride_height_,
      stride_width_;
  std::ptrdiff_t pad_top_, pad_left_;  // negative if input is cropped
  std::size_t depth_, panels_ = 0;
  const Kernels* kernels_ = nullptr;
  Buffer packed_;
  const float* weights_ = nullptr;
};

}  // namespace

std::unique_ptr<Algorithm> make_patches(const ConvolutionAttributes& attributes,
                                        const float* weights) {
  return std::make_unique<Patches>(attributes, weights);
}

}  // namespace pyinv::ops
