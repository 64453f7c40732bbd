#include "torch/function.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "torch/method.h"

namespace pyinv {
namespace {

using torchscript::Method;

std::string describe(const std::vector<int64_t>& row, const std::string& count) {
  std::string text = "[" + count;
  for (int64_t size : row) text += ", " + std::to_string(size);
  return text + "]";
}

std::string describe(const std::vector<int64_t>& shape) {
  if (shape.empty()) return "[]";
  return describe({shape.begin() + 1, shape.end()}, std::to_string(shape[0]));
}

bool is_out(const c10::Argument& argument) { return argument.name() == "out"; }

void check_input(const Method& method, const std::string& name, const HostArray* array) {
  const std::vector<int64_t> row = method.sizes().row(name);
  const std::string subject = method.file() + ": input '" + name + "' ";
  if (!array) {
    throw std::invalid_argument(subject + "is missing, expected float32 " + describe(row, "any"));
  }
  const auto& shape = array->shape;
  if (shape.empty() || !std::equal(shape.begin() + 1, shape.end(), row.begin(), row.end())) {
    throw std::invalid_argument(subject + "should be float32 " + describe(row, "any") + ", is " +
                                describe(shape));
  }
}

}  // namespace

TorchFunction::TorchFunction(const std::filesystem::path& file, const std::string& method,
                             const RuntimeOptions& options)
    : method_(std::make_unique<Method>(file, method, options)) {
  for (const c10::Argument& argument : method_->arguments()) {
    if (is_out(argument)) continue;
    try {
      method_->sizes().row(argument.name());
    } catch (const std::out_of_range&) {
      method_->refuse(method + " takes '" + argument.name() +
                      "', but only latent, image, condition and weights can be given");
    }
  }
}

TorchFunction::~TorchFunction() = default;

int64_t TorchFunction::latent_size() const { return method_->sizes().latent; }
int64_t TorchFunction::image_size() const { return method_->sizes().pixels(); }
int64_t TorchFunction::generated_size() const { return method_->sizes().generated_size(); }
int64_t TorchFunction::condition_size() const { return method_->sizes().condition; }

std::vector<int64_t> TorchFunction::shape(const std::string& argument, int64_t rows) const {
  std::vector<int64_t> shape = method_->sizes().row(argument);
  shape.insert(shape.begin(), rows);
  return shape;
}

std::map<std::string, HostArray> TorchFunction::run(
    const std::map<std::string, HostArray>& inputs) const {
  std::vector<std::pair<std::string, const HostArray*>> given;
  std::string known;
  for (const c10::Argument& argument : method_->arguments()) {
    if (is_out(argument)) continue;
    const auto found = inputs.find(argument.name());
    given.emplace_back(argument.name(), found == inputs.end() ? nullptr : &found->second);
    check_input(*method_, argument.name(), given.back().second);
    known += (known.empty() ? "" : ", ") + argument.name();
  }
  for (const auto& [name, array] : inputs) {
    const auto is_this = [&name = name](const auto& other) { return other.first == name; };
    if (std::none_of(given.begin(), given.end(), is_this)) {
      throw std::invalid_argument(method_->file() + ": there is no input '" + name + "', only " +
                                  known);
    }
  }

  return method_->within_call([&] {
    const c10::Device device = torchscript::to_torch(*method_->options().device);
    std::vector<c10::IValue> arguments;
    for (const auto& [name, array] : given) {
      auto* data = const_cast<float*>(array->data);  // torch has no type for constant tensors
      arguments.emplace_back(at::from_blob(data, array->shape, at::kFloat).to(device));
    }
    if (arguments.size() < method_->arguments().size()) arguments.emplace_back();  // no `out`
    const c10::IValue returned = method_->run(arguments);

    std::vector<std::pair<const char*, at::Tensor>> results;
    if (returned.isTensor()) {
      const auto is_image = [](const auto& input) { return input.first == "image"; };
      const bool encodes = std::any_of(given.begin(), given.end(), is_image);
      const char* made = method_->name() == "observe" ? "target" : encodes ? "latent" : "image";
      results.emplace_back(made, returned.toTensor());
    } else {
      constexpr const char* kNames[] = {"loss", "gradient", "gram"};
      const size_t count = returned.isTuple() ? returned.toTupleRef().size() : 0;
      if (count != 2 && count != 3) {
        method_->refuse(method_->name() +
                        " should return an image, a latent, a target, or a loss, a gradient and "
                        "perhaps a gram");
      }
      for (size_t i = 0; i < count; ++i) {
        results.emplace_back(kNames[i], returned.toTupleRef().elements()[i].toTensor());
      }
    }
    std::map<std::string, HostArray> outputs;
    for (const auto& [name, result] : results) {
      at::Tensor host = result.to(at::kCPU).contiguous();
      if (host.dtype() != at::kFloat) method_->refuse(std::string(name) + " is not float32");
      // Copy if the memory is shared with the caller's array or a weight.
      if (host.storage().use_count() > 1) host = host.clone();
      const auto tensor = std::make_shared<at::Tensor>(std::move(host));
      outputs[name] = {tensor->sizes().vec(), tensor->const_data_ptr<float>(), tensor};
    }
    return outputs;
  });
}

}  // namespace pyinv
