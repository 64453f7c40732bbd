// Two-dimensional convolution and transposed convolution of float images on the CPU. Bias,
// activation and the activation's derivative are fused, so that they work on cached results.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace pyinv::ops {

// Images in memory: [batch, height, width, channels], or [batch, channels, height, width] with
// channels first.
template <class Float>
struct Images {
  Float* data;
  std::size_t batch, height, width, channels;
  bool channels_first = false;

  std::size_t offset(std::size_t image, std::size_t y, std::size_t x) const {
    return channels_first ? image * channels * height * width + y * width + x
                          : ((image * height + y) * width + x) * channels;
  }
  std::size_t channel_stride() const { return channels_first ? height * width : 1; }
};

struct ConvolutionAttributes {
  bool transposed = false;
  std::size_t in_channels = 0, out_channels = 0;
  std::size_t kernel_height = 1, kernel_width = 1;
  std::size_t stride_height = 1, stride_width = 1;
  std::ptrdiff_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  std::size_t output_padding_height = 0, output_padding_width = 0;
  Activation activation = Activation::none;
  float slope = 0.0f;
  bool operand_is_factor = false;
  std::size_t images_sharing = 1;

  std::size_t out_height(std::size_t height) const;
  std::size_t out_width(std::size_t width) const;
};

// A convolution's weights in ONNX's layout: [out, in, height, width], or [in, out, height, width]
// for a transposed convolution.
class Weights {
 public:
  Weights(const float* data, const ConvolutionAttributes& attributes)
      : data_(data), attributes_(attributes) {}
  float at(std::size_t out, std::size_t in, std::size_t y, std::size_t x,
           bool flipped = false) const {
    const auto& a = attributes_;
    if (flipped) {
      y = a.kernel_height - 1 - y;
      x = a.kernel_width - 1 - x;
    }
    const std::size_t pair = a.transposed ? in * a.out_channels + out : out * a.in_channels + in;
    return data_[(pair * a.kernel_height + y) * a.kernel_width + x];
  }

 private:
  const float* data_;
  const ConvolutionAttributes& attributes_;
};

inline std::ptrdiff_t to_signed(std::size_t value) { return static_cast<std::ptrdiff_t>(value); }

// An algorithm for a convolution. The constructor packs the weights.
class Algorithm {
 public:
  virtual ~Algorithm() = default;
  virtual void run(const Images<const float>& in, const Images<float>& out,
                   const Epilogue& epilogue, const Parallel& parallel) const = 0;
};

std::unique_ptr<Algorithm> make_direct(const ConvolutionAttributes&, const float* weights);
std::unique_ptr<Algorithm> make_winograd(const ConvolutionAttributes&, const float* weights);
std::unique_ptr<Algorithm> make_patches(const ConvolutionAttributes&, const float* weights);
std::unique_ptr<Algorithm> make_columns(const ConvolutionAttributes&, const float* weights);
std::unique_ptr<Algorithm> make_planes(const ConvolutionAttributes&, const float* weights);

bool winograd_applies(const ConvolutionAttributes&);

class Convolution {
 public:
  // `weights` must outlive the convolution; `bias` is copied, and may be null.
  Convolution(const ConvolutionAttributes&, const float* weights, const float* bias);
  ~Convolution();

  const ConvolutionAttributes& attributes() const { return attributes_; }
  // `operand` is null or has the layout of `out`; see Epilogue. If it is a factor, it has one image
  // per `images_sharing` images of `out`.
  void run(const Images<const float>& in, const float* operand, const Images<float>& out,
           const Parallel& parallel);

 private:
  enum Choice { direct, winograd, columns, patches, planes, choices };
  Choice choose(const Images<const float>& in, const Images<float>& out) const;

  ConvolutionAttributes attributes_;
  const float* weights_;
  std::vector<float> bias_;
  // Weights are packed for an algorithm when a shape first uses it, and cached.
  std::once_flag made_[choices];
  std::unique_ptr<Algorithm> algorithms_[choices];
};

}  // namespace pyinv::ops
