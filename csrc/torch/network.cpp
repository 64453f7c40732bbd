#include <algorithm>
#include <stdexcept>

#include "pyinv/torchscript.h"
#include "torch/function.h"

namespace pyinv {
namespace {

// A method that maps one array, and optionally a condition, to another. Its user sees either a
// generator or an encoder.
class Network : public Generator, public Encoder {
 public:
  Network(const std::filesystem::path& file, const std::string& method,
          const RuntimeOptions& options, const char* input, const char* output)
      : function_(file, method, options), file_(file.string()), input_(input), output_(output) {}

  int64_t latent_size() const override { return function_.latent_size(); }
  int64_t image_size() const override {
    return input_ == "image" ? function_.image_size() : function_.generated_size();
  }
  int64_t condition_size() const override { return function_.condition_size(); }

  void generate(int64_t count, const float* latent, const float* condition,
                float* image) const override {
    run(count, latent, condition, image_size(), image);
  }
  void encode(int64_t count, const float* image, const float* condition,
              float* latent) const override {
    run(count, image, condition, latent_size(), latent);
  }

 private:
  void run(int64_t count, const float* input, const float* condition, int64_t output_size,
           float* output) const {
    std::map<std::string, HostArray> inputs;
    inputs[input_] = {function_.shape(input_, count), input, nullptr};
    if (function_.condition_size()) {
      inputs["condition"] = {{count, function_.condition_size()}, condition, nullptr};
    }
    const auto outputs = function_.run(inputs);
    const auto found = outputs.find(output_);
    int64_t made = found == outputs.end() ? 0 : 1;
    for (size_t i = 0; made && i < found->second.shape.size(); ++i) made *= found->second.shape[i];
    if (made != count * output_size) {
      throw std::runtime_error(file_ + ": does not give " + output_ + "s of " +
                               std::to_string(output_size) +
                               " numbers; export it again with pyinv.export");
    }
    std::copy_n(found->second.data, made, output);
  }

  TorchFunction function_;
  std::string file_, input_, output_;
};

}  // namespace

std::unique_ptr<Generator> torch_generator(const std::filesystem::path& file,
                                           const std::string& method,
                                           const RuntimeOptions& options) {
  return std::make_unique<Network>(file, method, options, "latent", "image");
}

std::unique_ptr<Encoder> torch_encoder(const std::filesystem::path& file, const std::string& method,
                                       const RuntimeOptions& options) {
  return std::make_unique<Network>(file, method, options, "image", "latent");
}

}  // namespace pyinv
