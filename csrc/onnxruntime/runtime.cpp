#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime/objective.h"
#include "pyinv/onnxruntime.h"

namespace pyinv {
namespace {

using ort::TensorInfo;

// G in an ONNX file: latent [B, d], perhaps condition [B, k] -> image [B, C, H, W], all float32.
class OnnxGenerator : public Generator {
 public:
  OnnxGenerator(const std::filesystem::path& file, const RuntimeOptions& options)
      : file_(file.string()), function_(file, options) {
    for (const TensorInfo& input : function_.inputs()) {
      if (input.name == "latent") latent_shape_ = row_shape(input);
      if (input.name == "condition") condition_shape_ = row_shape(input);
    }
    for (const TensorInfo& output : function_.outputs()) {
      if (output.name == "image") image_size_ = size(row_shape(output));
    }
    if (latent_shape_.empty() || !image_size_ ||
        function_.inputs().size() != 1u + !condition_shape_.empty()) {
      throw std::runtime_error(file_ +
                               ": not a generator: it needs an input 'latent', perhaps "
                               "'condition', and an output 'image'; export it with pyinv.export");
    }
  }

  int64_t latent_size() const override { return size(latent_shape_); }
  int64_t image_size() const override { return image_size_; }
  int64_t condition_size() const override {
    return condition_shape_.empty() ? 0 : size(condition_shape_);
  }

  void generate(int64_t count, const float* latent, const float* condition,
                float* image) const override {
    std::map<std::string, ort::TensorView> inputs;
    inputs["latent"] = rows(latent, latent_shape_, count);
    if (condition_size()) {
      if (!condition) throw std::invalid_argument(file_ + ": it takes a condition; none was given");
      inputs["condition"] = rows(condition, condition_shape_, count);
    }
    const auto outputs = function_.run(inputs);
    const ort::TensorView& made = outputs.at("image").tensor;
    if (size(made.shape) != count * image_size_) {
      throw std::runtime_error(file_ + ": output 'image' came out as " +
                               ort::describe(made.type, made.shape));
    }
    std::copy_n(static_cast<const float*>(made.data), count * image_size_, image);
  }

 private:
  std::vector<int64_t> row_shape(const TensorInfo& info) const {
    const std::vector<int64_t> shape(info.shape.begin() + !info.shape.empty(), info.shape.end());
    if (info.type != ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || shape.empty() ||
        std::any_of(shape.begin(), shape.end(), [](int64_t axis) { return axis < 1; })) {
      throw std::runtime_error(file_ + ": '" + info.name +
                               "' should be float32 with all but the first dimension fixed, is " +
                               ort::describe(info.type, info.shape));
    }
    return shape;
  }

  static int64_t size(const std::vector<int64_t>& shape) {
    int64_t product = 1;
    for (int64_t axis : shape) product *= axis;
    return product;
  }

  static ort::TensorView rows(const float* data, const std::vector<int64_t>& row, int64_t count) {
    ort::TensorView tensor{ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {count}, nullptr};
    tensor.shape.insert(tensor.shape.end(), row.begin(), row.end());
    tensor.data = const_cast<float*>(data);  // ONNX Runtime writes to no input
    return tensor;
  }

  std::string file_;
  ort::Function function_;
  std::vector<int64_t> latent_shape_, condition_shape_;
  int64_t image_size_ = 0;
};

}  // namespace

std::string load_onnxruntime(const std::filesystem::path& library) {
  return ort::load_library(library);
}

std::unique_ptr<Objective> onnx_objective(const std::filesystem::path& file,
                                          const RuntimeOptions& options) {
  return std::make_unique<OnnxObjective>(file, options);
}

std::unique_ptr<Generator> onnx_generator(const std::filesystem::path& file,
                                          const RuntimeOptions& options) {
  return std::make_unique<OnnxGenerator>(file, options);
}

}  // namespace pyinv
