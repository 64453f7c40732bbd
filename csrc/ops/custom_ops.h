// The convolutions of this folder as ONNX operators of the domain "pyinv".
//
// Six operators: Conv2d and ConvTranspose2d, each plain, with LeakyRelu after it, and times the
// derivative of a LeakyRelu (LeakyReluGradient). Files that use them also define them as ONNX
// functions of standard operators, which run, slower, where these are not registered.
// export/runtimes/onnx_fusion.py writes both and describes the operators' inputs and attributes.
#pragma once

#include "onnxruntime/c_api.h"

namespace pyinv::ort {

// Registers the operators for sessions created with these options. The kernels run on the session's
// own threads. Throws std::runtime_error if the library refuses.
void register_custom_ops(const OrtApi* api, OrtSessionOptions* options);

}  // namespace pyinv::ort
