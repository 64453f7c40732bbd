// Winograd's minimal filtering (Lavin & Gray, "Fast algorithms for convolutional neural networks",
// 2016): computes a tile's outputs with fewer products than outputs x taps, but with additions on
// the input, on the products and, once, on the weights. Four cases, in one dimension:
//
//   upsample4    transposed convolution, kernel 4, stride 2, padding 1. Outputs 2i and 2i + 1 are
//                each a two-tap filter of the input. Two outputs of a two-tap filter take 3
//                products: (d0 - d1) g0, d1 (g0 + g1), (d1 - d2) g1. Both filters run over nearly
//                the same inputs and share transformed inputs: 5 inputs, 6 products, 4 outputs.
//   downsample4  its adjoint, convolution with kernel 4, stride 2: the sum of a two-tap filter over
//                even inputs and one over odd inputs. The matrix product itself sums the two: 3
//                products of twice the depth, 2 outputs.
//   same3        convolution with kernel 3, stride 1, F(2, 3): 4 products, 2 outputs.
//   downsample5  convolution with kernel 5, stride 2: F(2, 3) over even inputs, and a two-tap
//                filter over odd inputs, which on the points 0, 1 and -1 has the first 3 of the 4
//                products. Again the matrix product sums the two: 7 products, 2 outputs.
//
// In two dimensions these take 36 products for 64 taps, 36 for 64, 16 for 36, and 49 for 100. The
// coefficients are 0, 1 and 1/2, so the result is as accurate as a direct sum to about one bit;
// larger tiles are less accurate.
#include <algorithm>
#include <array>
#include <stdexcept>

#include "convolution.h"
#include "scratch.h"

namespace pyinv::ops {
namespace {

struct Dimension {
  std::size_t inputs, products, outputs;
  std::size_t groups;     // positions that one product sums over
  std::size_t positions;  // transformed inputs per group
  std::size_t in_step;    // input pixels from one tile to the next
  std::size_t taps;
  std::array<std::size_t, 6> position;               // the position that each product reads
  std::array<std::array<float, 5>, 8> coefficients;  // of each product's (and group's) weights

  // A product's sum omits its last groups if their weights are 0.
  std::size_t groups_of(std::size_t product) const {
    std::size_t count = groups;
    while (coefficients[(count - 1) * products + product] == std::array<float, 5>{}) --count;
    return count;
  }
};

constexpr Dimension upsample4{
    .inputs = 4,
    .products = 6,
    .outputs = 4,
    .groups = 1,
    .positions = 5,
    .in_step = 2,
    .taps = 4,
    .position = {0, 1, 2, 2, 3, 4},
    .coefficients =
        {{{0, 0, 0, 1}, {0, 1, 0, 1}, {0, 1, 0, 0}, {0, 0, 1, 0}, {1, 0, 1, 0}, {1, 0, 0, 0}}},
};
constexpr Dimension downsample4{
    .inputs = 6,
    .products = 3,
    .outputs = 2,
    .groups = 2,
    .positions = 3,
    .in_step = 4,
    .taps = 4,
    .position = {0, 1, 2},
    .coefficients =
        {{{1, 0, 0, 0}, {1, 0, 1, 0}, {0, 0, 1, 0}, {0, 1, 0, 0}, {0, 1, 0, 1}, {0, 0, 0, 1}}},
};
constexpr Dimension same3{
    .inputs = 4,
    .products = 4,
    .outputs = 2,
    .groups = 1,
    .positions = 4,
    .in_step = 2,
    .taps = 3,
    .position = {0, 1, 2, 3},
    .coefficients = {{{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}}},
};

constexpr Dimension downsample5{
    .inputs = 7,
    .products = 4,
    .outputs = 2,
    .groups = 2,
    .positions = 4,
    .in_step = 4,
    .taps = 5,
    .position = {0, 1, 2, 3},
    .coefficients = {{{1, 0, 0, 0, 0},
                      {0.5f, 0, 0.5f, 0, 0.5f},
                      {0.5f, 0, -0.5f, 0, 0.5f},
                      {0, 0, 0, 0, 1},
                      {0, 1, 0, 0, 0},
                      {0, 0.5f, 0, 0.5f, 0},
                      {0, 0.5f, 0, -0.5f, 0},
                      {0, 0, 0, 0, 0}}},
};

struct Selection {
  Scheme scheme;
  const Dimension* dimension;
  std::ptrdiff_t pad_top, pad_left;
  const Kernels* kernels;
};

bool select(const ConvolutionAttributes& a, Selection& selection) {
  const auto square = [&](std::size_t kernel, std::size_t stride) {
    return a.kernel_height == kernel && a.kernel_width == kernel && a.stride_height == stride &&
           a.stride_width == stride;
  };
  // A stride-1 transposed convolution is a convolution with the kernel flipped.
  if (a.transposed && square(4, 2) && a.pad_top == 1 && a.pad_left == 1) {
    selection = {Scheme::upsample4, &upsample4, 1, 1, nullptr};
  } else if (!a.transposed && square(4, 2)) {
    selection = {Scheme::downsample4, &downsample4, a.pad_top, a.pad_left, nullptr};
  } else if (!a.transposed && square(5, 2)) {
    selection = {Scheme::downsample5, &downsample5, a.pad_top, a.pad_left, nullptr};
  } else if (!a.transposed && square(3, 1)) {
    selection = {Scheme::same3, &same3, a.pad_top, a.pad_left, nullptr};
  } else if (a.transposed && square(3, 1)) {
    selection = {Scheme::same3, &same3, 2 - a.pad_top, 2 - a.pad_left, nullptr};
  } else {
    return false;
  }
  selection.kernels = kernels_for_channels(a.in_channels, a.out_channels);
  return selection.kernels != nullptr;
}

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The offset of rows and matrices from a round number of floats. At multiples of a power of two,
// all would compete for the same few sets of the first-level cache.
constexpr std::size_t skew = 16;

// 8 times the rows that the product takes at once. Other values from 24 to 192 were not faster.
constexpr std::size_t tiles_in_block = 48;
constexpr std::size_t panels_in_block = 4;
constexpr std::size_t enough_blocks = 4;  // fewer would leave threads without work

class Winograd : public Algorithm {
 public:
  Winograd(const ConvolutionAttributes& a, const float* data) : attributes_(a) {
    if (!select(a, selection_)) throw std::logic_error("no Winograd algorithm for this shape");
    const Dimension& d = *selection_.dimension;
    const std::size_t panel = selection_.kernels->panel;
    const std::size_t groups = d.groups * d.groups;
    depth_ = groups * a.in_channels;
    panels_ = round_up(a.out_channels, panel) / panel;
    weights_ = packed_.at_least(d.products * d.products * panels_ * depth_ * panel);
    const std::size_t width = panels_ * panel;
    const float* by_tap = arranged(data, width);
    float* to = weights_;
    for (std::size_t product = 0; product < d.products * d.products; ++product) {
      for (std::size_t column = 0; column < panels_; ++column) {
        for (std::size_t group = 0; group < groups; ++group) {
          const auto& by_y = d.coefficients[group / d.groups * d.products + product / d.products];
          const auto& by_x = d.coefficients[group % d.groups * d.products + product % d.products];
          std::fill_n(to, a.in_channels * panel, 0.0f);
          for (std::size_t tap = 0; tap < d.taps * d.taps; ++tap) {
            const float coefficient = by_y[tap / d.taps] * by_x[tap % d.taps];
            if (coefficient == 0.0f) continue;
            const float* from = by_tap + tap * a.in_channels * width + column * panel;
            for (std::size_t in = 0; in < a.in_channels; ++in) {
              for (std::size_t out = 0; out < panel; ++out) {
                to[in * panel + out] += coefficient * from[in * width + out];
              }
            }
          }
          to += a.in_channels * panel;
        }
      }
    }
  }

  void run(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
           const Parallel& parallel) const override {
    const Dimension& d = *selection_.dimension;
    const std::size_t tiles_y = (out.height + d.outputs - 1) / d.outputs;
    const std::size_t tiles_x = (out.width + d.outputs - 1) / d.outputs;
    const std::size_t tiles = in.batch * tiles_y * tiles_x;
    const std::size_t blocks = (tiles + tiles_in_block - 1) / tiles_in_block;
    // With few tiles, the columns are split among tasks too. Each task transforms the input again,
    // which costs a twentieth of the products.
    const std::size_t panels = blocks < enough_blocks ? panels_in_block : panels_;
    const std::size_t shares = (panels_ + panels - 1) / panels;
    const std::vector<float> outside(in.channels, 0.0f);
    parallel.for_each(blocks * shares, [&](std::size_t task) {
      const std::size_t block = task / shares, panel = task % shares * panels;
      run_block(in, out, epilogue, tiles_y, tiles_x, tiles * block / blocks,
                tiles * (block + 1) / blocks, panel, std::min(panel + panels, panels_),
                outside.data());
    });
  }

 private:
  struct ByTap {};

  // The weights as [taps, in channels, width], with zeros beyond the output channels.
  const float* arranged(const float* data, std::size_t width) const {
    const ConvolutionAttributes& a = attributes_;
    const Weights weights(data, a);
    const std::size_t taps = selection_.dimension->taps;
    const bool turned = selection_.scheme == Scheme::same3 && a.transposed;
    float* by_tap = scratch<ByTap>(taps * taps * a.in_channels * width);
    float* to = by_tap;
    for (std::size_t tap = 0; tap < taps * taps; ++tap) {
      for (std::size_t in = 0; in < a.in_channels; ++in) {
        for (std::size_t out = 0; out < width; ++out) {
          *to++ = out < a.out_channels ? weights.at(out, in, tap / taps, tap % taps, turned) : 0.0f;
        }
      }
    }
    return by_tap;
  }

  struct Block {};

  void run_block(const Images<const float>& in, const Images<float>& out, const Epilogue& epilogue,
                 std::size_t tiles_y, std::size_t tiles_x, std::size_t first, std::size_t last,
                 std::size_t first_panel, std::size_t last_panel, const float* outside) const {
    const Dimension& d = *selection_.dimension;
    const Kernels& kernel = *selection_.kernels;
    const std::size_t scheme = static_cast<std::size_t>(selection_.scheme);
    const std::size_t tiles = last - first;
    const std::size_t row = depth_ + skew;
    const std::size_t position = tiles * row + skew;
    const std::size_t columns = panels_in_block * kernel.panel;
    const std::size_t product = tiles * columns + skew;
    const std::size_t products = d.products * d.products;
    float* transformed = scratch<Block>(d.positions * d.positions * position + products * product);
    float* sums = transformed + d.positions * d.positions * position;

    const auto place = [&](std::size_t tile, std::size_t& image, std::size_t& y, std::size_t& x) {
      image = tile / (tiles_y * tiles_x);
      y = tile / tiles_x % tiles_y;
      x = tile % tiles_x;
    };
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      std::size_t image, tile_y, tile_x;
      place(first + tile, image, tile_y, tile_x);
      const float* pixels[49];
      const auto top = static_cast<std::ptrdiff_t>(tile_y * d.in_step) - selection_.pad_top;
      const auto left = static_cast<std::ptrdiff_t>(tile_x * d.in_step) - selection_.pad_left;
      for (std::size_t y = 0; y < d.inputs; ++y) {
        for (std::size_t x = 0; x < d.inputs; ++x) {
          // A negative coordinate becomes a huge unsigned one, so one comparison checks both ends.
          const auto in_y = static_cast<std::size_t>(top + static_cast<std::ptrdiff_t>(y));
          const auto in_x = static_cast<std::size_t>(left + static_cast<std::ptrdiff_t>(x));
          pixels[y * d.inputs + x] = in_y < in.height && in_x < in.width
                                         ? in.data + in.offset(image, in_y, in_x)
                                         : outside;
        }
      }
      kernel.transform_input[scheme]({pixels, in.channels, transformed + tile * row, position});
    }

    std::vector<const float*> rows(tiles);
    for (std::size_t column = first_panel; column < last_panel; column += panels_in_block) {
      const std::size_t panels = std::min(panels_in_block, last_panel - column);
      for (std::size_t index = 0; index < products; ++index) {
        const std::size_t from =
            d.position[index / d.products] * d.positions + d.position[index % d.products];
        const std::size_t groups_y = d.groups_of(index / d.products);
        const std::size_t groups_x = d.groups_of(index % d.products);
        // Adjacent groups are summed in one product.
        const bool at_once = groups_x == d.groups;
        for (std::size_t group_y = 0; group_y < (at_once ? 1 : groups_y); ++group_y) {
          const std::size_t begin = group_y * d.groups * in.channels;
          for (std::size_t tile = 0; tile < tiles; ++tile) {
            rows[tile] = transformed + from * position + tile * row + begin;
          }
          kernel.multiply(rows.data(), tiles, groups_x * (at_once ? groups_y : 1) * in.channels,
                          weights_ + ((index * panels_ + column) * depth_ + begin) * kernel.panel,
                          panels, depth_ * kernel.panel, sums + index * product, columns,
                          group_y > 0);
        }
      }
      const std::size_t channel = column * kernel.panel;
      Epilogue here = epilogue;
      if (here.bias) here.bias += channel;
      for (std::size_t tile = 0; tile < tiles; ++tile) {
        std::size_t image, tile_y, tile_x;
        place(first + tile, image, tile_y, tile_x);
        float* pixels[16];
        const float* operand[16];
        for (std::size_t pixel = 0; pixel < d.outputs * d.outputs; ++pixel) {
          const std::size_t y = tile_y * d.outputs + pixel / d.outputs;
          const std::size_t x = tile_x * d.outputs + pixel % d.outputs;
          const bool inside = y < out.height && x < out.width;
          const std::size_t offset = inside ? out.offset(image, y, x) + channel : 0;
          pixels[pixel] = inside ? out.data + offset : nullptr;
          operand[pixel] = inside ? epilogue.operand_at(image, offset) : nullptr;
        }
        kernel.transform_output[scheme](
            {sums + tile * columns, product,
             std::min(panels * kernel.panel, out.channels - channel), pixels, operand},
            here);
      }
    }
  }

  ConvolutionAttributes attributes_;
  Selection selection_;
  std::size_t depth_ = 0, panels_ = 0;
  Buffer packed_;
  float* weights_ = nullptr;
};

}  // namespace

bool winograd_applies(const ConvolutionAttributes& attributes) {
  Selection selection;
  return select(attributes, selection);
}

std::unique_ptr<Algorithm> make_winograd(const ConvolutionAttributes& attributes,
                                         const float* weights) {
  return std::make_unique<Winograd>(attributes, weights);
}

}  // namespace pyinv::ops
