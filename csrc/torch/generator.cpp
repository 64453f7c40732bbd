#include <algorithm>
#include <stdexcept>

#include "pyinv/torchscript.h"
#include "torch/function.h"

namespace pyinv {
namespace {

class TorchGenerator : public Generator {
 public:
  TorchGenerator(const std::filesystem::path& file, const std::string& method,
                 const RuntimeOptions& options)
      : function_(file, method, options), file_(file.string()) {}

  int64_t latent_size() const override { return function_.latent_size(); }
  int64_t image_size() const override { return function_.image_size(); }
  int64_t condition_size() const override { return function_.condition_size(); }

  void generate(int64_t count, const float* latent, const float* condition,
                float* image) const override {
    std::map<std::string, HostArray> inputs;
    inputs["latent"] = {{count, latent_size()}, latent, nullptr};
    if (condition_size()) inputs["condition"] = {{count, condition_size()}, condition, nullptr};
    const auto outputs = function_.run(inputs);
    const auto found = outputs.find("image");
    int64_t made = found == outputs.end() ? 0 : 1;
    for (size_t i = 0; made && i < found->second.shape.size(); ++i) made *= found->second.shape[i];
    if (made != count * image_size()) {
      throw std::runtime_error(file_ +
                               ": not a generator of such images; export it again with "
                               "pyinv.export");
    }
    std::copy_n(found->second.data, made, image);
  }

 private:
  TorchFunction function_;
  std::string file_;
};

}  // namespace

std::unique_ptr<Generator> torch_generator(const std::filesystem::path& file,
                                           const std::string& method,
                                           const RuntimeOptions& options) {
  return std::make_unique<TorchGenerator>(file, method, options);
}

}  // namespace pyinv
