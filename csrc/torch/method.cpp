#include "torch/method.h"

#include <ATen/ops/from_blob.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/frozen_graph_optimizations.h>
#include <torch/version.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <stdexcept>

#include "printable.h"
#include "torch/archive.h"
#include "torchscript/source.h"

namespace pyinv::torchscript {
namespace {

constexpr const char* kAgain = "; export it again with pyinv.export";

// The cause of an error, as one line, from torch's long message.
std::string cause(std::string text) {
  // The message of an error within a method has the method's source; the cause is at the end.
  for (const char* label : {"\nRuntimeError: ", "\nNotImplementedError: "}) {
    const size_t at = text.rfind(label);
    if (at != std::string::npos) text.erase(0, text.find(": ", at) + 2);
  }
  text.erase(0, text.find_first_not_of(" \n"));
  text.erase(std::min(text.find('\n'), text.size()));
  while (!text.empty() && (text.back() == '.' || text.back() == ' ')) text.pop_back();
  return printable(text, 1000);  // it may quote the file
}

bool out_of_memory(const std::exception& error, const std::string& text) {
  // Within a method, torch turns every exception into a std::runtime_error.
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) ||
         text.find("out of memory") != std::string::npos ||
         text.find("can't allocate memory") != std::string::npos;
}

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace

int64_t Sizes::pixels() const { return product(image); }
int64_t Sizes::generated_size() const { return product(generated); }

std::vector<int64_t> Sizes::row(const std::string& argument) const {
  if (argument == "latent") return {latent};
  if (argument == "image" || argument == "weights") return image;
  if (argument == "condition" && condition > 0) return {condition};
  throw std::out_of_range(argument);
}

Method::Method(const std::filesystem::path& file, const std::string& name,
               const RuntimeOptions& options)
    : file_(file.string()), name_(name), options_(options) {
  if (!options_.device) options_.device = cpu_device();
  if (options_.threads < 1) {
    throw std::invalid_argument(file_ + ": threads should be at least 1, is " +
                                std::to_string(options_.threads));
  }
  if (!std::filesystem::is_regular_file(file)) throw std::runtime_error(file_ + ": no such file");
  if (options_.device->kind() == DeviceKind::cuda && !at::hasCUDA()) {
    throw DeviceError("torch " TORCH_VERSION
                      " has no CUDA; install a CUDA build of torch, or use the CPU");
  }
  within_call([&] { load(); });
}

void Method::load() {
  module_ = load_module(file_, to_torch(*options_.device));
  const auto method = module_.find_method(name_);
  if (!method) {
    std::string known;
    for (const auto& other : module_.get_methods()) {
      known += (known.empty() ? "" : ", ") + other.name();
    }
    refuse("it has no method '" + name_ + "', only " + (known.empty() ? "none" : known));
  }
  check_graph(*module_.get_method(name_).graph());
  sizes_ = read_sizes();
  const auto& declared = method->function().getSchema().arguments();
  arguments_.assign(declared.begin() + 1, declared.end());

  module_.eval();
  torch::jit::freeze_module_inplace(&module_, {name_});
  auto graph = module_.get_method(name_).graph();
  torch::jit::OptimizeFrozenGraph(graph);
  // By default, torch profiles a graph's first runs and specialises it to their shapes, again for
  // every other batch size. This mode runs the graph unchanged from the first call.
  executor_ = torch::jit::GraphExecutor(graph, name_, torch::jit::ExecutorExecutionMode::SIMPLE);
}

Sizes Method::read_sizes() const {
  const auto attribute = [&](const char* name) {
    if (!module_.hasattr(name)) refuse(std::string("it does not say its ") + name);
    return module_.attr(name);
  };
  const c10::IValue latent = attribute("latent_size"), image = attribute("image_shape"),
                    condition = attribute("condition_size");
  if (!latent.isInt() || !image.isIntList() || !condition.isInt()) {
    refuse("latent_size and condition_size should be whole numbers, image_shape a list of them");
  }
  Sizes sizes{.latent = latent.toInt(),
              .image = image.toIntVector(),
              .condition = condition.toInt(),
              .generated = image.toIntVector()};
  if (module_.hasattr("generated_shape")) {  // absent from files without forward
    sizes.generated = attribute("generated_shape").toIntVector();
  }
  if (sizes.latent < 1 || sizes.image.empty() || sizes.pixels() < 1 || sizes.condition < 0) {
    refuse("latent_size and the numbers of image_shape should be at least 1");
  }
  return sizes;
}

bool Method::takes(std::string_view argument) const {
  return std::any_of(arguments_.begin(), arguments_.end(),
                     [&](const c10::Argument& taken) { return taken.name() == argument; });
}

at::Tensor Method::view(float* data, const std::vector<int64_t>& shape) const {
  const c10::Device device = to_torch(*options_.device);
  return at::for_blob(data, shape)
      .options(at::TensorOptions().dtype(at::kFloat).device(device))
      .target_device(device)
      .make_tensor();
}

c10::IValue Method::run(const std::vector<c10::IValue>& arguments) const {
  torch::jit::Stack stack;
  stack.reserve(arguments.size() + 1);
  stack.push_back(module_._ivalue());
  stack.insert(stack.end(), arguments.begin(), arguments.end());
  executor_.run(stack);
  return std::move(stack.front());
}

void Method::refuse(const std::string& problem) const {
  throw std::runtime_error(file_ + ": " + problem + kAgain);
}

// Must be called within an exception handler.
void Method::rethrow() const {
  const std::string subject = file_ + ", " + name_;
  try {
    throw;
  } catch (const Refused& refused) {
    throw std::runtime_error(file_ + ": " + refused.what() + kAgain);
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    if (out_of_memory(error, text)) throw OutOfMemory(subject + ": " + cause(text));
    throw std::runtime_error(subject + ": torch: " + cause(text));
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    if (text.starts_with(file_)) throw;  // thrown by this class
    if (out_of_memory(error, text)) throw OutOfMemory(subject + ": " + cause(text));
    throw std::runtime_error(subject + ": torch: " + cause(text));
  } catch (const std::exception& error) {
    if (dynamic_cast<const std::invalid_argument*>(&error)) throw;
    throw std::runtime_error(subject + ": torch: " + cause(error.what()));
  }
}

}  // namespace pyinv::torchscript
