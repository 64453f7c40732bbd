// The operators that ONNX Runtime's CUDA provider supports. Names are as in a manifest: bare for
// the standard domain, with their domain for others, "com.microsoft:FusedConv".
#pragma once

#include <string>
#include <vector>

#include "pyinv/api.h"

namespace pyinv::ort {

// Whether the provider can run a graph of these operators during stream capture.
PYINV_API bool recordable(const std::vector<std::string>& operators);

// The operators among these that may not have a CUDA kernel. ONNX Runtime runs them on the CPU. If
// such an operator reads an input of the graph, it reads a copy made when the input was bound.
PYINV_API std::vector<std::string> without_cuda(const std::vector<std::string>& operators);

}  // namespace pyinv::ort
