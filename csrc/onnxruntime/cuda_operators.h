// What ONNX Runtime's CUDA provider can do with operators. Their names are those of a manifest: of
// the standard domain alone, of others with the domain before them, "com.microsoft:FusedConv".
#pragma once

#include <string>
#include <vector>

#include "pyinv/api.h"

namespace pyinv::ort {

// Whether the provider can run a graph of these operators while its stream is being recorded.
PYINV_API bool recordable(const std::vector<std::string>& operators);

// Those of the operators that may have no CUDA kernel. ONNX Runtime runs them on the CPU. Where one
// reads an input of the graph, it reads a copy from the time when the input was bound.
PYINV_API std::vector<std::string> without_cuda(const std::vector<std::string>& operators);

}  // namespace pyinv::ort
