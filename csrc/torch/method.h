// A method of a TorchScript module, loaded to run on a device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "pyinv/objective.h"
#include "torch/scope.h"

namespace pyinv::torchscript {

// Sizes recorded in the module, because TorchScript methods do not declare shapes.
struct Sizes {
  int64_t latent = 0;
  std::vector<int64_t> image;  // one target's, without the batch axis
  int64_t condition = 0;       // 0: none
  // What forward() generates: images, also where `image`, the target, is an observation of one.
  std::vector<int64_t> generated;

  int64_t pixels() const;
  int64_t generated_size() const;
  // The shape of an argument's row, by name; throws std::out_of_range for an unknown name.
  std::vector<int64_t> row(const std::string& argument) const;
};

// The module is frozen: its weights are constants of the graph, on the device.
class Method {
 public:
  // Throws std::runtime_error, DeviceError, OutOfMemory, and std::invalid_argument for the options.
  Method(const std::filesystem::path& file, const std::string& name, const RuntimeOptions& options);

  const std::string& file() const { return file_; }
  const std::string& name() const { return name_; }
  const RuntimeOptions& options() const { return options_; }
  const Sizes& sizes() const { return sizes_; }
  // Without self.
  const std::vector<c10::Argument>& arguments() const { return arguments_; }
  bool takes(std::string_view argument) const;

  // Runs `work` in the scope of a call, and converts torch's exceptions to pyinv's.
  template <class Work>
  auto within_call(Work&& work) const {
    try {
      const CallScope scope(options_);
      return work();
    } catch (const std::exception&) {
      rethrow();
    }
  }

  // Call these two within a call. A view borrows the device's memory.
  at::Tensor view(float* data, const std::vector<int64_t>& shape) const;
  c10::IValue run(const std::vector<c10::IValue>& arguments) const;

  [[noreturn]] void refuse(const std::string& problem) const;

 private:
  void load();
  Sizes read_sizes() const;
  [[noreturn]] void rethrow() const;

  std::string file_, name_;
  RuntimeOptions options_;
  Sizes sizes_;
  std::vector<c10::Argument> arguments_;
  torch::jit::Module module_;
  mutable torch::jit::GraphExecutor executor_;
};

}  // namespace pyinv::torchscript
