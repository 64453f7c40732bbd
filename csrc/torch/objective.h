// The objective computed by a method of a TorchScript module:
//   (latent [B, d], image [B, ...], [condition [B, k]], [weights [B, ...]], out) -> (loss [B],
//   gradient [B, d]),
// and for normal equations also gram [B, d, d], all float32. It writes its results into the
// tensors `out` and returns them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "pyinv/api.h"
#include "pyinv/objective.h"

namespace pyinv {

namespace torchscript {
class Method;
}

// Passes the engine's arrays to the method directly, so a step does not copy here.
class PYINV_API TorchObjective : public Objective {
 public:
  // Throws as torch_objective() does.
  TorchObjective(const std::filesystem::path& file, const std::string& method,
                 const RuntimeOptions& options);
  ~TorchObjective() override;

  int64_t latent_size() const override;
  int64_t image_size() const override;
  int64_t condition_size() const override;
  bool takes_weights() const override;
  bool has_gram() const override { return has_gram_; }
  std::shared_ptr<Device> device() const override;

  std::unique_ptr<Evaluator> bind(const LaneBuffers& buffers) const override;

 private:
  void check_signature();
  void check_results() const;

  std::unique_ptr<torchscript::Method> method_;
  bool has_gram_ = false;
};

}  // namespace pyinv
