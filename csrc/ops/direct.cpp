// A convolution as one matrix product per phase: rows are output pixels, the summed dimension is
// taps x input channels, columns are output channels. The input is not copied into such a matrix:
// with channels last, a tap's part of a row is contiguous in the image. Rows are gathered first
// only if channels come first, or if a tap has few channels.
#include <algorithm>

#include "convolution.h"
#include "scratch.h"
#include "taps.h"

namespace pyinv::ops {
namespace {

constexpr std::size_t rows_in_block = 48;   // 8 times the kernel's 6
constexpr std::size_t panels_in_block = 4;  // enough work for a task, enough tasks for a batch of 1
// A product adds to sums in memory; with no more summands than this it takes longer than a copy.
constexpr std::size_t gathered_channels = 64;

struct PackedPhase {
  Phase phase;
  Buffer buffer;
  const float* weights;
};

class Direct : public Algorithm {
 public:
  Direct(const ConvolutionAttributes& a, const float* data)
      : in_channels_(a.in_channels),
        out_channels_(a.out_channels),
        kernels_(&kernels(a.out_channels)) {
    const Weights weights(data, a);
    const std::size_t panel = kernels_->panel;
    panels_ = (a.out_channels + panel - 1) / panel;
    for (const Phase& phase : phases(a)) {
      PackedPhase packed{phase, {}, nullptr};
      const auto& taps = packed.phase.taps;
      float* to = packed.buffer.at_least(panels_ * taps.size() * in_channels_ * panel);
      packed.weights = to;
      for (std::size_t column = 0; column < panels_; ++column) {
        for (const Tap& tap : taps) {
          for (std::size_t in = 0; in < in_channels_; ++in) {
            for (std::size_t out = column * panel; out < (column + 1) * panel; ++out) {
              *to++ = out < out_channels_ ? weights.at(out, in, tap.kernel_y, tap.kernel_x) : 0.0f;
            }
          }
        }
      }
      phases_.push_back(std::move(packed));
    }
  }

  void run(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
           const Parallel& parallel) const override {
    struct Task {
      const PackedPhase* phase;
      std::size_t first_row, last_row, first_panel, last_panel;
    };
    std::vector<Task> tasks;
    for (const PackedPhase& packed : phases_) {
      const std::size_t rows =
          in.batch * packed.phase.rows(out.height) * packed.phase.columns(out.width);
      const std::size_t blocks = (rows + rows_in_block - 1) / rows_in_block;
      // With many rows, a task is a block of rows and all columns, so the rows are looked up once.
      const std::size_t panels = blocks > 8 ? panels_ : std::min(panels_in_block, panels_);
      for (std::size_t panel = 0; panel < panels_; panel += panels) {
        for (std::size_t block = 0; block < blocks; ++block) {
          tasks.push_back({&packed, rows * block / blocks, rows * (block + 1) / blocks, panel,
                           std::min(panel + panels, panels_)});
        }
      }
    }
    const std::vector<float> outside(in.channels, 0.0f);
    parallel.for_each(tasks.size(), [&](std::size_t index) {
      const Task& task = tasks[index];
      run_block(*task.phase, in, out, epilogue, outside.data(), task.first_row, task.last_row,
                task.first_panel, task.last_panel);
    });
  }

 private:
  struct Sums {};
  struct Gathered {};
  struct Finished {};

  void run_block(const PackedPhase& packed, const Images<const float>& in, const Images<float>& out,
                 const Epilogue& epilogue, const float* outside, std::size_t first_row,
                 std::size_t last_row, std::size_t first_panel, std::size_t last_panel) const {
    const Kernels& kernel = *kernels_;
    const Phase& phase = packed.phase;
    const std::size_t panels = last_panel - first_panel;
    const std::size_t columns = panels * kernel.panel;
    const std::size_t depth = phase.taps.size() * in_channels_;
    const std::size_t height = phase.rows(out.height), width = phase.columns(out.width);
    const std::size_t rows = last_row - first_row;
    float* sums = scratch<Sums>(rows * columns);
    if (depth == 0) std::fill_n(sums, rows * columns, 0.0f);

    struct Place {
      std::size_t image, y, x;
    };
    Place places[rows_in_block];
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t index = first_row + row;
      places[row] = {index / (height * width), index / width % height, index % width};
    }
    // The pixel of a tap for a row; null outside the image.
    const auto pixel = [&](const Place& place, const Tap& tap) -> const float* {
      // A negative coordinate becomes a huge unsigned one, so one comparison checks both ends.
      const std::size_t y = place.y * phase.in_step_y + static_cast<std::size_t>(tap.shift_y);
      const std::size_t x = place.x * phase.in_step_x + static_cast<std::size_t>(tap.shift_x);
      return y < in.height && x < in.width ? in.data + in.offset(place.image, y, x) : nullptr;
    };

    const float* weights = packed.weights + first_panel * depth * kernel.panel;
    const float* lines[rows_in_block];
    if (in.channels_first || in_channels_ <= gathered_channels) {
      float* gathered = scratch<Gathered>(rows * depth);
      const std::size_t stride = in.channel_stride();
      for (std::size_t row = 0; row < rows; ++row) {
        float* to = gathered + row * depth;
        lines[row] = to;
        for (const Tap& tap : phase.taps) {
          const float* from = pixel(places[row], tap);
          if (!from) {
            std::fill_n(to, in_channels_, 0.0f);
          } else if (stride == 1) {
            std::copy_n(from, in_channels_, to);
          } else {
            for (std::size_t channel = 0; channel < in_channels_; ++channel) {
              to[channel] = from[channel * stride];
            }
          }
          to += in_channels_;
        }
      }
      kernel.multiply(lines, rows, depth, weights, panels, depth * kernel.panel, sums, columns,
                      false);
    } else {
      for (std::size_t index = 0; index < phase.taps.size(); ++index) {
        bool inside = false;
        for (std::size_t row = 0; row < rows; ++row) {
          const float* from = pixel(places[row], phase.taps[index]);
          inside = inside || from;
          lines[row] = from ? from : outside;
        }
        if (!inside && index > 0) continue;
        kernel.multiply(lines, rows, in_channels_, weights + index * in_channels_ * kernel.panel,
                        panels, depth * kernel.panel, sums, columns, index > 0);
      }
    }

    const std::size_t channel = first_panel * kernel.panel;
    const std::size_t channels = std::min(columns, out_channels_ - channel);
    const std::size_t stride = out.channel_stride();
    Epilogue here = epilogue;
    if (here.bias) here.bias += channel;
    for (std::size_t row = 0; row < rows; ++row) {
      const Place& place = places[row];
      const std::size_t offset = out.offset(place.image, phase.offset_y + place.y * phase.step_y,
                                            phase.offset_x + place.x * phase.step_x) +
                                 channel * stride;
      const float* operand = epilogue.operand_at(place.image, offset);
      if (stride == 1) {
        kernel.finish(sums + row * columns, channels, here, operand, out.data + offset);
        continue;
      }
      float* finished = scratch<Finished>(2 * channels);
      if (operand) {
        for (std::size_t each = 0; each < channels; ++each) {
          finished[channels + each] = operand[each * stride];
        }
        operand = finished + channels;
      }
      kernel.finish(sums + row * columns, channels, here, operand, finished);
      for (std::size_t each = 0; each < channels; ++each) {
        out.data[offset + each * stride] = finished[each];
      }
    }
  }

  std::size_t in_channels_, out_channels_, panels_ = 0;
  const Kernels* kernels_;
  std::vector<PackedPhase> phases_;
};

}  // namespace

std::unique_ptr<Algorithm> make_direct(const ConvolutionAttributes& attributes,
                                       const float* weights) {
  return std::make_unique<Direct>(attributes, weights);
}

}  // namespace pyinv::ops
