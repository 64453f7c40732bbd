// The objective in an ONNX file: graph inputs latent, image and optionally condition and weights;
// outputs loss and gradient, and gram for normal equations; all float32 with lanes as the first
// axis.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "onnxruntime/session.h"
#include "pyinv/bundle.h"
#include "pyinv/objective.h"

namespace pyinv {

// Binds the engine's arrays to the graph directly, so a step does not copy or allocate here.
class PYINV_API OnnxObjective : public Objective {
 public:
  // Throws as onnx_objective.
  OnnxObjective(const std::filesystem::path& file, const OnnxOperators& operators,
                const RuntimeOptions& options, const ort::Files& files = {});

  int64_t latent_size() const override { return latent_size_; }
  int64_t image_size() const override { return image_size_; }
  int64_t condition_size() const override { return condition_size_; }
  bool takes_weights() const override { return takes_weights_; }
  bool has_gram() const override { return has_gram_; }
  std::shared_ptr<Device> device() const override { return model_.device(); }

  std::unique_ptr<Evaluator> bind(const LaneBuffers& buffers) const override;

 private:
  ort::Model model_;
  std::vector<int64_t> image_shape_;  // one target's, without the batch axis
  int64_t latent_size_ = 0, image_size_ = 0, condition_size_ = 0;
  int64_t most_at_once_ = 0;
  bool takes_weights_ = false, has_gram_ = false, recordable_ = false;
};

}  // namespace pyinv
