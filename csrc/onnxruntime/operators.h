// The operators in an ONNX file, read without ONNX Runtime, which does not tell.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "pyinv/api.h"

namespace pyinv::ort {

// Names of all operators of the standard domain, in the graph, its subgraphs and the model's
// functions; others with their domain before them, "com.microsoft:FusedConv". Operators that the
// model itself defines as functions are left out. Throws std::runtime_error for a file that is no
// ONNX model.
PYINV_API std::set<std::string> operators_in(const std::filesystem::path& file);

// Whether ONNX Runtime's CUDA provider can run the model while its stream is being recorded.
PYINV_API bool recordable(const std::filesystem::path& file);

// The operators that read an input of the graph itself and may have no CUDA kernel. ONNX Runtime
// runs such a one on the CPU, from a copy that it makes when the input is bound and never again.
PYINV_API std::set<std::string> readers_without_cuda(const std::filesystem::path& file);

}  // namespace pyinv::ort
