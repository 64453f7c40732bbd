// G: maps latents to images, or to targets of any other shape, flattened.
#pragma once

#include <cstdint>

#include "pyinv/api.h"

namespace pyinv {

class PYINV_API Generator {
 public:
  virtual ~Generator() = default;

  virtual int64_t latent_size() const = 0;
  virtual int64_t image_size() const = 0;
  virtual int64_t condition_size() const = 0;  // 0: no condition

  // Computes image [count, image_size] from latent [count, latent_size] and condition [count,
  // condition_size], which is null without a condition. All arrays are in host memory, whatever the
  // device. All `count` images are generated as one batch. May be called from several threads.
  virtual void generate(int64_t count, const float* latent, const float* condition,
                        float* image) const = 0;
};

}  // namespace pyinv
