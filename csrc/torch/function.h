// Any method of a TorchScript module, with host arrays by name; wrapped by the Python class
// TorchFunction.
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
  std::shared_ptr<const void> owner;  // owner of an output's memory
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
  int64_t generated_size() const;
  // The shape of an argument's array with `rows` rows.
  std::vector<int64_t> shape(const std::string& argument, int64_t rows) const;

  // Takes all arguments except `out` by name. A single result is named "image", or "latent" if an
  // image is among the arguments. Two results are named "loss" and "gradient", and a third "gram".
  // Throws std::invalid_argument for an array that is missing, unknown, or of the wrong shape.
  std::map<std::string, HostArray> run(const std::map<std::string, HostArray>& inputs) const;

 private:
  std::unique_ptr<torchscript::Method> method_;
};

}  // namespace pyinv
