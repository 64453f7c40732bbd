#include "onnxruntime/cuda_operators.h"

#include <algorithm>
#include <iterator>
#include <string_view>

namespace pyinv::ort {
namespace {

// Operators whose CUDA kernels get their parameters by value. Others may copy small arrays from
// pinned host memory, which ONNX Runtime frees at the end of the run. During stream capture this
// ends the process (ONNX Runtime's pull request 32081), or every replay frees the arrays again.
// Control flow reads its condition on the host.
// clang-format off
constexpr std::string_view kRecordable[] = {
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Clip", "Constant", "Conv", "ConvTranspose",
    "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Flatten", "Gemm", "Greater", "GreaterOrEqual",
    "HardSigmoid", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul",
    "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu",
    "Reshape", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Squeeze",
    "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
};
// clang-format on

// Other operators that have CUDA kernels for float32 with any attributes. ConvTranspose is
// recordable but not listed here: with asymmetric padding it runs on the CPU.
// clang-format off
constexpr std::string_view kWithCuda[] = {
    "AveragePool", "Ceil", "Concat", "DepthToSpace", "Dropout", "Einsum", "Expand", "Floor",
    "Gather", "GatherElements", "GatherND", "GlobalAveragePool", "GlobalMaxPool",
    "InstanceNormalization", "LayerNormalization", "LogSoftmax", "MatMul", "MaxPool", "PRelu",
    "Pad", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd",
    "Resize", "Round", "Size", "Slice", "Softmax", "SpaceToDepth", "Split", "Sum", "Tile",
};
// clang-format on

template <size_t size>
bool is_in(const std::string_view (&names)[size], const std::string& name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_recordable(const std::string& name) { return is_in(kRecordable, name); }

bool has_cuda(const std::string& name) {
  return name != "ConvTranspose" && (is_recordable(name) || is_in(kWithCuda, name));
}

}  // namespace

bool recordable(const std::vector<std::string>& operators) {
  return std::all_of(operators.begin(), operators.end(), is_recordable);
}

std::vector<std::string> without_cuda(const std::vector<std::string>& operators) {
  std::vector<std::string> found;
  std::remove_copy_if(operators.begin(), operators.end(), std::back_inserter(found), has_cuda);
  return found;
}

}  // namespace pyinv::ort
