// E: maps images, or targets of any other shape, to latents in one pass, as a start for an
// inversion.
#pragma once

#include <cstdint>

#include "pyinv/api.h"

namespace pyinv {

class PYINV_API Encoder {
 public:
  virtual ~Encoder() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: no condition

  // Computes latent [count, latent_size] from image [count, image_size] and condition [count,
  // condition_size], which is null without a condition. All arrays are in host memory, whatever the
  // device. All `count` images are encoded as one batch. May be called from several threads.
  virtual void encode(int64_t count, const float* image, const float* condition,
                      float* latent) const = 0;
};

}  // namespace pyinv
