// A convolution of stride 1 from one channel to one channel, such as StyleGAN's blur, whose
// channels are images of the batch. A matrix product would have a single column, so each row of the
// output is instead a sum of rows of the input, each times a tap's weight.
#include <algorithm>

#include "convolution.h"
#include "scratch.h"
#include "taps.h"

namespace pyinv::ops {
namespace {

constexpr std::size_t rows_in_block = 32;

class Planes : public Algorithm {
 public:
  Planes(const ConvolutionAttributes& a, const float* data) : taps_(phases(a).front().taps) {
    const Weights weights(data, a);
    for (const Tap& tap : taps_) {
      weights_.push_back(weights.at(0, 0, tap.kernel_y, tap.kernel_x));
    }
  }

  void run(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
           const Parallel& parallel) const override {
    const std::size_t blocks = (out.height + rows_in_block - 1) / rows_in_block;
    // Bias starts the sums: the epilogue's would be one per channel, and a row is one channel.
    const float bias = epilogue.bias ? *epilogue.bias : 0.0f;
    Epilogue rest = epilogue;
    rest.bias = nullptr;
    parallel.for_each(out.batch * blocks, [&](std::size_t task) {
      const std::size_t image = task / blocks, first = task % blocks * rows_in_block;
      for (std::size_t y = first; y < std::min(first + rows_in_block, out.height); ++y) {
        run_row(in, out, rest, bias, image, y);
      }
    });
  }

 private:
  struct Sums {};

  void run_row(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
               float bias, std::size_t image, std::size_t y) const {
    const Kernels& kernel = kernels(out.width);
    float* sums = scratch<Sums>(out.width);
    std::fill_n(sums, out.width, bias);
    for (std::size_t index = 0; index < taps_.size(); ++index) {
      const Tap& tap = taps_[index];
      // A negative coordinate becomes a huge unsigned one, so one comparison checks both ends.
      const std::size_t row = y + static_cast<std::size_t>(tap.shift_y);
      if (row >= in.height) continue;
      const std::ptrdiff_t first = std::max(std::ptrdiff_t{0}, -tap.shift_x);
      const std::ptrdiff_t last = std::min(to_signed(out.width), to_signed(in.width) - tap.shift_x);
      if (first >= last) continue;
      kernel.add_scaled(in.data + in.offset(image, row, 0) + (first + tap.shift_x), weights_[index],
                        static_cast<std::size_t>(last - first), sums + first);
    }
    const std::size_t offset = out.offset(image, y, 0);
    kernel.finish(sums, out.width, epilogue, epilogue.operand_at(image, offset), out.data + offset);
  }

  std::vector<Tap> taps_;
  std::vector<float> weights_;
};

}  // namespace

std::unique_ptr<Algorithm> make_planes(const ConvolutionAttributes& attributes,
                                       const float* weights) {
  return std::make_unique<Planes>(attributes, weights);
}

}  // namespace pyinv::ops
