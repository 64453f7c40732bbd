// The convolutions of this folder as ONNX operators of the domain "pyinv".
//
// Six operators: Conv2d and ConvTranspose2d, each plain, with LeakyRelu after it, and times the
// derivative of a LeakyRelu (LeakyReluGradient). Files that use them also define them as ONNX
// functions in standard operators, so that they run, slower, where these are not registered;
// export/runtimes/onnx_fusion.py writes both and describes the operators' inputs and attributes.
#pragma once

#include "onnxruntime/c_api.h"

namespace pyinv::ort {

// Makes the operators known to sessions created with these options. The operators' kernels run on
// the session's own threads. Throws std::runtime_error when the library refuses.
void register_custom_ops(const OrtApi* api, OrtSessionOptions* options);

}  // namespace pyinv::ort
