// The inner loops of the convolutions, which differ by instruction set.
#pragma once

#include <cstddef>
#include <span>

namespace pyinv::ops {

enum class Activation { none, relu, leaky_relu };

// Applied to a finished sum before it is stored: out = activation(sum + bias). With an operand,
// out = sum * (operand > 0 ? 1 : slope), where the operand is the forward activation's output, or
// out = sum * operand, where the operand is the activation's derivative.
struct Epilogue {
  const float* bias = nullptr;     // one value per channel, or null
  const float* operand = nullptr;  // in the layout of the output, or null
  Activation activation = Activation::none;
  float slope = 0.0f;  // of the negative side: 0 for relu
  bool is_factor = false;
  // The number of consecutive output images that share an image of the operand.
  std::size_t images_sharing = 1;
  std::size_t image_size = 0;  // floats

  // The operand of the output's float at `offset` in this image.
  const float* operand_at(std::size_t image, std::size_t offset) const {
    return operand ? operand + (offset - (image - image / images_sharing) * image_size) : nullptr;
  }
};

// The Winograd algorithms; see winograd.cpp.
enum class Scheme { upsample4, downsample4, same3, downsample5 };
constexpr std::size_t scheme_count = 4;

struct InputTransform {
  const float* const* pixels;  // the tile's input pixels, row by row, each `channels` floats
  std::size_t channels;
  float* out;            // this tile's row in the first product's left matrix
  std::size_t position;  // floats from one position's matrix to the next
};

struct OutputTransform {
  const float* products;
  std::size_t position;  // floats from one position's product to the next
  std::size_t channels;
  float* const* pixels;         // the output pixels, row by row; null outside the image
  const float* const* operand;  // the same pixels of the epilogue's operand, or null
};

// A row of an output image as sums of overlapping pieces; see columns.cpp.
struct Gather {
  const float* const* rows;  // products of the input rows for this output row
  std::size_t row_count;
  std::size_t width;   // input pixels in a row
  std::size_t stride;  // floats from one input pixel's products to the next's
  std::size_t block;   // floats that an input pixel adds to one output block
  std::size_t pieces;  // consecutive output blocks that an input pixel adds to
  float* out;          // (width + pieces - 1) blocks, and room for a register beyond
};

struct Kernels {
  const char* name;
  std::size_t vector;  // floats in a register
  std::size_t panel;   // columns that `multiply` computes at once; weights are packed to this width

  // out[row][0 .. panels * panel) (+)= sum over k < depth of rows[row][k] * weights[.][k][.], where
  // weights holds `panels` matrices of panel columns, panel_stride floats apart.
  void (*multiply)(const float* const* rows, std::size_t row_count, std::size_t depth,
                   const float* weights, std::size_t panels, std::size_t panel_stride, float* out,
                   std::size_t out_stride, bool accumulate);
  void (*transform_input[scheme_count])(const InputTransform&);
  void (*transform_output[scheme_count])(const OutputTransform&, const Epilogue&);
  // sum[0 .. count) += factor * from[0 .. count)
  void (*add_scaled)(const float* from, float factor, std::size_t count, float* sum);
  // Reads up to a register beyond the last pixel's products.
  void (*gather)(const Gather&);
  // Finishes one pixel; `operand` is the pixel's operand, or null.
  void (*finish)(const float* sums, std::size_t channels, const Epilogue&, const float* operand,
                 float* out);
};

// The fastest kernels on this processor for a product with so many columns. The environment
// variable PYINV_MAX_CPU_ISA (avx512, avx2 or portable) forbids what is above it.
const Kernels& kernels(std::size_t columns);
// Those of them whose registers both numbers of channels fill, or null.
const Kernels* kernels_for_channels(std::size_t in, std::size_t out);

// The sets of kernels, the preferred one first; empty where the processor cannot run them.
std::span<const Kernels> avx512_kernels();
std::span<const Kernels> avx2_kernels();
std::span<const Kernels> portable_kernels();

}  // namespace pyinv::ops
