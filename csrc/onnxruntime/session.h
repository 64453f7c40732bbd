// A graph in an ONNX file, loaded to run on a device.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "onnxruntime/library.h"
#include "onnxruntime/model_files.h"
#include "pyinv/cancellation.h"
#include "pyinv/objective.h"

namespace pyinv::ort {

// A graph's declaration of an input or output. A dynamic dimension is -1.
struct TensorInfo {
  std::string name;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
};

// A non-owning view of a tensor: contiguous, last dimension fastest.
struct TensorView {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
  void* data = nullptr;
};

// NumPy's name of the type, such as "float32"; "unknown" for types that TensorView cannot hold
// (strings, sequences).
PYINV_API const char* type_name(ONNXTensorElementDataType type);
size_t element_size(ONNXTensorElementDataType type);  // bytes; 0 for an unknown type

std::string describe(ONNXTensorElementDataType type, const std::vector<int64_t>& shape);

// Wraps a tensor in `device`'s memory without copying it.
Value borrow_tensor(const TensorView& tensor, const Device& device, std::string_view subject);

// Options of a run, which terminate() ends from another thread.
RunOptions make_run_options(std::string_view subject);
void terminate(OrtRunOptions* options) noexcept;

// Loads the file, and its external data from the same folder, both of which `files` must hold.
class Model {
 public:
  // Throws std::runtime_error if the file is not a graph, DeviceError if this ONNX Runtime cannot
  // use the device, OutOfMemory.
  Model(const std::filesystem::path& file, const RuntimeOptions& options, const Files& files);

  const std::vector<TensorInfo>& inputs() const { return inputs_; }
  const std::vector<TensorInfo>& outputs() const { return outputs_; }
  const std::string& file() const { return file_; }
  OrtSession* session() const { return session_.get(); }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::string file_;
  std::shared_ptr<Device> device_;  // the session runs in its stream
  Session session_;
  std::vector<TensorInfo> inputs_, outputs_;
};

// Any graph, with inputs and outputs by name; wrapped by the Python class OnnxFunction. Arrays are
// in host memory, whatever the device.
class PYINV_API Function {
 public:
  // An output and its memory.
  struct Output {
    TensorView tensor;
    Value owner;
  };

  // Throws std::runtime_error for a graph with inputs or outputs other than tensors of numbers.
  Function(const std::filesystem::path& file, const RuntimeOptions& options,
           const Files& files = {});

  const std::vector<TensorInfo>& inputs() const { return model_.inputs(); }
  const std::vector<TensorInfo>& outputs() const { return model_.outputs(); }

  // Takes all inputs and returns all outputs by name. Throws std::invalid_argument for an input
  // that is missing or unknown, or whose type or shape differs from its declaration.
  // Throws std::runtime_error soon after `cancellation` was cancelled.
  std::map<std::string, Output> run(const std::map<std::string, TensorView>& inputs,
                                    Cancellation* cancellation = nullptr) const;

 private:
  Model model_;
};

}  // namespace pyinv::ort
