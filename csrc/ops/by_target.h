// Convolutions whose weights differ by image, and the gradient with respect to such weights.
#pragma once

#include "convolution.h"

namespace pyinv::ops {

// `weights` holds each image's weights in ONNX's layout, one after the other.
void convolve_by_target(const ConvolutionAttributes&, const Images<const float>& in,
                        const float* weights, const Images<float>& out, const Parallel&);

// out[image][o][i][y][x] = the derivative of sum(gradient * convolution(in)) with respect to the
// image's weights. The convolution is not transposed.
void weight_gradient(const ConvolutionAttributes&, const Images<const float>& in,
                     const Images<const float>& gradient, float* out, const Parallel&);

}  // namespace pyinv::ops
