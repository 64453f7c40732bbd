// Any method of a TorchScript module, called by name on arrays in the host's memory: what the
// Python class TorchFunction wraps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pyinv/api.h"
#include "pyinv/objective.h"

namespace pyinv {

namespace torchscript {
class Method;
}

// float32, contiguous, last dimension fastest.
struct HostArray {
  std::vector<int64_t> shape;
  const float* data = nullptr;
  std::shared_ptr<const void> owner;  // of an output's memory
};

class PYINV_API TorchFunction {
 public:
  // Throws as torch_objective() does.
  TorchFunction(const std::filesystem::path& file, const std::string& method,
                const RuntimeOptions& options);
  ~TorchFunction();

  int64_t latent_size() const;
  int64_t image_size() const;
  int64_t condition_size() const;
  // Of an argument's array with so many rows.
  std::vector<int64_t> shape(const std::string& argument, int64_t rows) const;

  // Takes every argument by its name, but `out`. A single result is called "image", or "latent"
  // where an image is among the arguments; two are called "loss" and "gradient", and a third one
  // "gram". Throws std::invalid_argument for an array that is missing, not the method's, or of
  // another shape.
  std::map<std::string, HostArray> run(const std::map<std::string, HostArray>& inputs) const;

 private:
  std::unique_ptr<torchscript::Method> method_;
};

}  // namespace pyinv
