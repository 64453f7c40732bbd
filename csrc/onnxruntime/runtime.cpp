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

// An ONNX file with one input [B, ...], optionally a condition [B, k], and one output [B, ...], all
// float32. Its user sees either a generator or an encoder.
class Network : public Generator, public Encoder {
 public:
  Network(const Bundle& bundle, const BundleFunction& function, const RuntimeOptions& options,
          const char* kind, const char* input, const char* output)
      : file_(bundle.file(function).string()),
        input_(input),
        output_(output),
        function_(bundle.file(function), options, bundle.files) {
    for (const TensorInfo& info : function_.inputs()) {
      if (info.name == input_) input_shape_ = row_shape(info);
      if (info.name == "condition") condition_shape_ = row_shape(info);
    }
    for (const TensorInfo& info : function_.outputs()) {
      if (info.name == output_) output_size_ = size(row_shape(info));
    }
    if (input_shape_.empty() || !output_size_ ||
        function_.inputs().size() != 1u + !condition_shape_.empty()) {
      throw std::runtime_error(file_ + ": not " + kind + ": it needs an input '" + input_ +
                               "', perhaps 'condition', and an output '" + output_ +
                               "'; export it with pyinv.export");
    }
  }

  int64_t latent_size() const override { return size_of("latent"); }
  int64_t image_size() const override { return size_of("image"); }
  int64_t condition_size() const override {
    return condition_shape_.empty() ? 0 : size(condition_shape_);
  }

  void generate(int64_t count, const float* latent, const float* condition,
                float* image) const override {
    run(count, latent, condition, image);
  }
  void encode(int64_t count, const float* image, const float* condition,
              float* latent) const override {
    run(count, image, condition, latent);
  }

 private:
  int64_t size_of(const char* name) const {
    return name == input_ ? size(input_shape_) : output_size_;
  }

  void run(int64_t count, const float* input, const float* condition, float* output) const {
    std::map<std::string, ort::TensorView> inputs;
    inputs[input_] = rows(input, input_shape_, count);
    if (condition_size()) {
      if (!condition) throw std::invalid_argument(file_ + ": it takes a condition; none was given");
      inputs["condition"] = rows(condition, condition_shape_, count);
    }
    const auto outputs = function_.run(inputs);
    const ort::TensorView& made = outputs.at(output_).tensor;
    if (size(made.shape) != count * output_size_) {
      throw std::runtime_error(file_ + ": output '" + output_ + "' is " +
                               ort::describe(made.type, made.shape));
    }
    std::copy_n(static_cast<const float*>(made.data), count * output_size_, output);
  }

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
    tensor.data = const_cast<float*>(data);  // ONNX Runtime does not write to inputs
    return tensor;
  }

  std::string file_, input_, output_;
  ort::Function function_;
  std::vector<int64_t> input_shape_, condition_shape_;
  int64_t output_size_ = 0;
};

}  // namespace

std::string load_onnxruntime(const std::filesystem::path& library) {
  return ort::load_library(library);
}

std::unique_ptr<Objective> onnx_objective(const Bundle& bundle, const BundleFunction& function,
                                          const RuntimeOptions& options) {
  return std::make_unique<OnnxObjective>(bundle.file(function), function.operators, options,
                                         bundle.files);
}

std::unique_ptr<Generator> onnx_generator(const Bundle& bundle, const BundleFunction& function,
                                          const RuntimeOptions& options) {
  return std::make_unique<Network>(bundle, function, options, "a generator", "latent", "image");
}

std::unique_ptr<Encoder> onnx_encoder(const Bundle& bundle, const BundleFunction& function,
                                      const RuntimeOptions& options) {
  return std::make_unique<Network>(bundle, function, options, "an encoder", "image", "latent");
}

}  // namespace pyinv
