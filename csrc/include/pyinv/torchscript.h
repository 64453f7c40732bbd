// Load functions for libtorch. Link to the library pyinv_torch.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "pyinv/api.h"
#include "pyinv/encoder.h"
#include "pyinv/generator.h"
#include "pyinv/objective.h"

namespace pyinv {

// Loads the objective, or the normal equations, that a method of a TorchScript file computes. In a
// bundle these are Bundle::file(Bundle::objective(loss, "torchscript")) and its `method`.
// Throws std::runtime_error if the file has no such objective, DeviceError if this libtorch cannot
// use the device, OutOfMemory.
PYINV_API std::unique_ptr<Objective> torch_objective(const std::filesystem::path& file,
                                                     const std::string& method,
                                                     const RuntimeOptions& options = {});

// Loads the generator, Bundle::forward("torchscript").
PYINV_API std::unique_ptr<Generator> torch_generator(const std::filesystem::path& file,
                                                     const std::string& method,
                                                     const RuntimeOptions& options = {});

// Loads the encoder, Bundle::encode("torchscript").
PYINV_API std::unique_ptr<Encoder> torch_encoder(const std::filesystem::path& file,
                                                 const std::string& method,
                                                 const RuntimeOptions& options = {});

// The version of libtorch that the library was built for, the only one it runs with: "2.13.0".
PYINV_API std::string torch_version();

}  // namespace pyinv
