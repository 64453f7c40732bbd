#include "onnxruntime/objective.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "onnxruntime/cuda_operators.h"

namespace pyinv {
namespace {

using ort::OrtIoBinding;
using ort::TensorInfo;

// The most lane ranges whose bindings are cached. An engine that shrinks its batch towards the end
// of a run uses one range per batch size; beyond this number the bindings are recreated.
constexpr size_t kMaxBindings = 1024;

// A batch axis, and one axis or more of a row.
constexpr size_t kAnyRank = 0;

struct Expected {
  const char* name;
  const char* shape;  // for the message
  size_t rank;
  bool required;
};

constexpr Expected kInputs[] = {{"latent", "[any, d]", 2, true},
                                {"image", "[any, ...]", kAnyRank, true},
                                {"condition", "[any, k]", 2, false},
                                {"weights", "[any, ...]", kAnyRank, false}};
constexpr Expected kOutputs[] = {{"loss", "[any]", 1, true},
                                 {"gradient", "[any, d]", 2, true},
                                 {"gram", "[any, d, d]", 3, false}};

[[noreturn]] void refuse(const std::string& file, const std::string& problem) {
  throw std::runtime_error(file + ": not an objective that the engine can run: " + problem +
                           "; export it with pyinv.export");
}

const TensorInfo* find(const std::vector<TensorInfo>& signature, const char* name) {
  for (const TensorInfo& info : signature) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

void check_signature(const std::string& file, const char* kind,
                     const std::vector<TensorInfo>& signature, std::span<const Expected> expected) {
  size_t found = 0;
  for (const Expected& tensor : expected) {
    const std::string label = std::string(kind) + " '" + tensor.name + "'";
    const TensorInfo* info = find(signature, tensor.name);
    if (!info && tensor.required) {
      refuse(file, label + " (float32 " + tensor.shape + ") is missing");
    }
    if (!info) continue;
    ++found;
    if (info->type != ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
        (tensor.rank == kAnyRank ? info->shape.size() < 2 : info->shape.size() != tensor.rank) ||
        info->shape[0] >= 0) {
      refuse(file, label + " should be float32 " + tensor.shape + ", is " +
                       ort::describe(info->type, info->shape));
    }
  }
  if (found == signature.size()) return;
  for (const TensorInfo& info : signature) {
    bool known = false;
    for (const Expected& tensor : expected) known = known || info.name == tensor.name;
    if (!known) refuse(file, std::string(kind) + " '" + info.name + "' is unknown");
  }
}

// A binding is used for many steps. An operator on the CPU would read the inputs of the first step.
void check_inputs_stay_on_gpu(const std::string& file, const OnnxOperators& operators) {
  if (operators.all.empty()) {
    throw std::invalid_argument(file + ": a GPU needs to know the graph's operators; give those " +
                                "of its BundleFunction");
  }
  const std::vector<std::string> readers = ort::without_cuda(operators.reading_inputs);
  if (readers.empty()) return;
  std::string names;
  for (const std::string& name : readers) names += (names.empty() ? "" : ", ") + name;
  throw DeviceError(file + ": cannot run on a GPU: ONNX Runtime may compute " + names +
                    " on the CPU, and " + (readers.size() == 1 ? "it reads" : "they read") +
                    " an input of the graph directly; use the CPU, or the runtime torchscript");
}

// The size of a lane's row, which must be static in the graph.
int64_t row_size(const std::string& file, const TensorInfo& info) {
  int64_t size = 1;
  for (size_t i = 1; i < info.shape.size(); ++i) size *= info.shape[i] > 0 ? info.shape[i] : 0;
  if (!size) {
    refuse(file, "input '" + info.name + "' should be dynamic in its first dimension only, is " +
                     ort::describe(info.type, info.shape));
  }
  return size;
}

// The shape of one lane's part of each tensor.
struct Rows {
  std::vector<int64_t> latent, image, condition, weights;  // the last two: empty if not taken
};

// On a GPU, a run returns once its work is in the stream, without waiting for it.
ort::RunOptions make_run_options(const ort::Model& model) {
  ort::RunOptions options = ort::make_run_options(model.file());
  if (model.device()->kind() == DeviceKind::cuda) {
    ort::check(ort::AddRunConfigEntry(ort::api(), options.get(),
                                      "disable_synchronize_execution_providers", "1"),
               model.file());
  }
  return options;
}

class OnnxEvaluator : public Evaluator {
 public:
  // `buffers` must have a gram if the graph computes one.
  OnnxEvaluator(const ort::Model& model, const LaneBuffers& buffers, Rows rows,
                int64_t most_at_once, bool recordable)
      : model_(model),
        buffers_(buffers),
        rows_(std::move(rows)),
        most_at_once_(most_at_once > 0 ? most_at_once : buffers.lanes),
        recordable_(recordable),
        run_options_(make_run_options(model)) {}

  void evaluate(int64_t first, int64_t count) override;
  void interrupt() noexcept override { ort::terminate(run_options_.get()); }
  bool capturable() const override { return recordable_; }

 private:
  using Lanes = std::pair<int64_t, int64_t>;  // first, count

  void run(int64_t first, int64_t count);
  ort::IoBinding make_binding(int64_t first, int64_t count) const;

  const ort::Model& model_;
  const LaneBuffers buffers_;
  const Rows rows_;
  const int64_t most_at_once_;
  const bool recordable_;
  const ort::RunOptions run_options_;
  std::map<Lanes, ort::IoBinding> bindings_;
};

ort::IoBinding OnnxEvaluator::make_binding(int64_t first, int64_t count) const {
  OrtIoBinding* handle = nullptr;
  ort::check(ort::CreateIoBinding(ort::api(), model_.session(), &handle), model_.file());
  ort::IoBinding binding(handle);

  const auto lanes = [&](float* array, const std::vector<int64_t>& row) {
    ort::TensorView tensor{ort::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {count}, nullptr};
    int64_t stride = 1;
    for (int64_t dimension : row) stride *= dimension;
    tensor.shape.insert(tensor.shape.end(), row.begin(), row.end());
    tensor.data = array + first * stride;
    return ort::borrow_tensor(tensor, *model_.device(), model_.file());
  };
  // The binding holds its own reference to each tensor.
  const auto bind_input = [&](const char* name, const float* array,
                              const std::vector<int64_t>& row) {
    // ONNX Runtime has no type for constant tensors, but it does not write to inputs.
    const ort::Value value = lanes(const_cast<float*>(array), row);
    ort::check(ort::BindInput(ort::api(), handle, name, value.get()), model_.file());
  };
  const auto bind_output = [&](const char* name, float* array, const std::vector<int64_t>& row) {
    const ort::Value value = lanes(array, row);
    ort::check(ort::BindOutput(ort::api(), handle, name, value.get()), model_.file());
  };
  bind_input("latent", buffers_.latent, rows_.latent);
  bind_input("image", buffers_.image, rows_.image);
  if (!rows_.condition.empty()) bind_input("condition", buffers_.condition, rows_.condition);
  if (!rows_.weights.empty()) bind_input("weights", buffers_.weights, rows_.weights);
  bind_output("loss", buffers_.loss, {});
  bind_output("gradient", buffers_.gradient, rows_.latent);
  if (buffers_.gram) {
    bind_output("gram", buffers_.gram, {rows_.latent.front(), rows_.latent.front()});
  }
  return binding;
}

void OnnxEvaluator::evaluate(int64_t first, int64_t count) {
  assert(first >= 0 && count > 0 && first + count <= buffers_.lanes);
  for (const int64_t end = first + count; first < end; first += most_at_once_) {
    run(first, std::min(most_at_once_, end - first));
  }
}

void OnnxEvaluator::run(int64_t first, int64_t count) {
  auto found = bindings_.find({first, count});
  if (found == bindings_.end()) {
    if (bindings_.size() == kMaxBindings) bindings_.clear();
    found = bindings_.emplace(Lanes{first, count}, make_binding(first, count)).first;
  }
  ort::check(
      ort::RunWithBinding(ort::api(), model_.session(), run_options_.get(), found->second.get()),
      model_.file());
}

}  // namespace

OnnxObjective::OnnxObjective(const std::filesystem::path& file, const OnnxOperators& operators,
                             const RuntimeOptions& options, const ort::Files& files)
    : model_(file, options, files), most_at_once_(options.most_at_once) {
  check_signature(model_.file(), "input", model_.inputs(), kInputs);
  check_signature(model_.file(), "output", model_.outputs(), kOutputs);

  const TensorInfo& image = *find(model_.inputs(), "image");
  latent_size_ = row_size(model_.file(), *find(model_.inputs(), "latent"));
  image_size_ = row_size(model_.file(), image);
  image_shape_.assign(image.shape.begin() + 1, image.shape.end());
  if (const TensorInfo* condition = find(model_.inputs(), "condition")) {
    condition_size_ = row_size(model_.file(), *condition);
  }
  if (const TensorInfo* weights = find(model_.inputs(), "weights")) {
    takes_weights_ = true;
    if (!std::equal(image.shape.begin() + 1, image.shape.end(), weights->shape.begin() + 1,
                    weights->shape.end())) {
      refuse(model_.file(), "input 'weights' should have the shape of 'image', is " +
                                ort::describe(weights->type, weights->shape));
    }
  }
  if (options.device->kind() == DeviceKind::cuda) {
    check_inputs_stay_on_gpu(model_.file(), operators);
    recordable_ = ort::recordable(operators.all);
  }
  // If the gradient's width is not declared, ONNX Runtime checks it in the first run.
  const TensorInfo& gradient = *find(model_.outputs(), "gradient");
  if (gradient.shape[1] >= 0 && gradient.shape[1] != latent_size_) {
    refuse(model_.file(), "output 'gradient' should be as wide as 'latent', " +
                              std::to_string(latent_size_) + ", is " +
                              ort::describe(gradient.type, gradient.shape));
  }
  const TensorInfo* gram = find(model_.outputs(), "gram");
  has_gram_ = gram != nullptr;
  const auto is_width = [&](int64_t size) { return size < 0 || size == latent_size_; };
  if (gram && !(is_width(gram->shape[1]) && is_width(gram->shape[2]))) {
    refuse(model_.file(), "output 'gram' should be as wide and high as 'latent', " +
                              std::to_string(latent_size_) + ", is " +
                              ort::describe(gram->type, gram->shape));
  }
}

std::unique_ptr<Evaluator> OnnxObjective::bind(const LaneBuffers& buffers) const {
  assert(buffers.latent && buffers.image && buffers.loss && buffers.gradient);
  if (condition_size_ && !buffers.condition) {
    throw std::invalid_argument(model_.file() + ": this objective takes a condition of " +
                                std::to_string(condition_size_) +
                                " values for each target; none was given");
  }
  if (takes_weights_ && !buffers.weights) {
    throw std::invalid_argument(model_.file() + ": this objective takes weights; none were given");
  }
  if (has_gram_ && !buffers.gram) {
    throw std::invalid_argument(model_.file() +
                                ": these are normal equations, and there is no gram "
                                "to write");
  }
  LaneBuffers used = buffers;
  if (!has_gram_) used.gram = nullptr;
  Rows rows{.latent = {latent_size_}, .image = image_shape_, .condition = {}, .weights = {}};
  if (condition_size_) rows.condition = {condition_size_};
  if (takes_weights_) rows.weights = image_shape_;
  return std::make_unique<OnnxEvaluator>(model_, used, std::move(rows), most_at_once_, recordable_);
}

}  // namespace pyinv
