#include "convolution.h"

#include <algorithm>

namespace pyinv::ops {
namespace {

std::size_t out_size(const ConvolutionAttributes& a, std::size_t size, std::size_t kernel,
                     std::size_t stride, std::ptrdiff_t pads, std::size_t output_padding) {
  const auto in = static_cast<std::ptrdiff_t>(size), k = static_cast<std::ptrdiff_t>(kernel),
             s = static_cast<std::ptrdiff_t>(stride);
  const std::ptrdiff_t out =
      a.transposed ? (in - 1) * s + k - pads + static_cast<std::ptrdiff_t>(output_padding)
                   : (in + pads - k < 0 ? 0 : (in + pads - k) / s + 1);
  return out > 0 ? static_cast<std::size_t>(out) : 0;
}

// Below these limits the matrix product has too few columns or rows to be efficient. Measured on an
// AMD Zen 3 with the layers of a 64x64 DCGAN.
constexpr std::size_t few_channels = 8;
// Winograd's weights are 2.25 (kernel 4) or 1.78 (kernel 3) times as large, and all are read for
// every block of tiles. With few tiles, reading them takes longer than the multiplications saved.
// Tiles are counted by image and not by batch, so that an image's result does not depend on the
// batch. For a 64x64 DCGAN this takes 20 % more time at batch 1 and none from batch 4 on.
constexpr std::size_t few_tiles = 4;

}  // namespace

std::size_t ConvolutionAttributes::out_height(std::size_t height) const {
  return out_size(*this, height, kernel_height, stride_height, pad_top + pad_bottom,
                  output_padding_height);
}

std::size_t ConvolutionAttributes::out_width(std::size_t width) const {
  return out_size(*this, width, kernel_width, stride_width, pad_left + pad_right,
                  output_padding_width);
}

Convolution::Convolution(const ConvolutionAttributes& attributes, const float* weights,
                         const float* bias)
    : attributes_(attributes), weights_(weights) {
  if (bias) bias_.assign(bias, bias + attributes.out_channels);
}

Convolution::~Convolution() = default;

Convolution::Choice Convolution::choose(const Images<const float>& in,
                                        const Images<float>& out) const {
  const ConvolutionAttributes& a = attributes_;
  const bool stride_one = a.stride_height == 1 && a.stride_width == 1;
  if (a.in_channels == 1 && a.out_channels == 1 && stride_one) return planes;
  if (a.out_channels < few_channels && !in.channels_first && (a.transposed || stride_one)) {
    return columns;
  }
  if (a.in_channels < few_channels && !out.channels_first && (!a.transposed || stride_one)) {
    return patches;
  }
  // Every Winograd tile here has four pixels on the smaller side, or at stride 1.
  const std::size_t pixels = std::min(in.height * in.width, out.height * out.width);
  if (!in.channels_first && !out.channels_first && pixels / 4 >= few_tiles && winograd_applies(a)) {
    return winograd;
  }
  return direct;
}

void Convolution::run(const Images<const float>& in, const float* operand, const Images<float>& out,
                      const Parallel& parallel) {
  if (out.batch * out.height * out.width == 0) return;
  const Choice choice = choose(in, out);
  std::call_once(made_[choice], [&] {
    algorithms_[choice] = choice == winograd  ? make_winograd(attributes_, weights_)
                          : choice == columns ? make_columns(attributes_, weights_)
                          : choice == planes  ? make_planes(attributes_, weights_)
                          : choice == patches ? make_patches(attributes_, weights_)
                                              : make_direct(attributes_, weights_);
  });
  const Epilogue epilogue{.bias = bias_.empty() ? nullptr : bias_.data(),
                          .operand = operand,
                          .activation = attributes_.activation,
                          .slope = attributes_.slope,
                          .is_factor = attributes_.operand_is_factor,
                          .images_sharing = attributes_.images_sharing,
                          .image_size = out.height * out.width * out.channels};
  algorithms_[choice]->run(in, out, epilogue, parallel);
}

}  // namespace pyinv::ops
