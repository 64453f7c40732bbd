// Functions that libtorch runs. They are in the library pyinv_torch.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "pyinv/api.h"
#include "pyinv/encoder.h"
#include "pyinv/generator.h"
#include "pyinv/objective.h"

namespace pyinv {

// The objective that a method of a TorchScript file is, in a bundle
// Bundle::file(Bundle::objective(loss, "torchscript")) and that function's `method`. Or the normal
// equations that it is.
// Throws std::runtime_error if the file has no such objective, DeviceError if this libtorch cannot
// use the device, OutOfMemory.
PYINV_API std::unique_ptr<Objective> torch_objective(const std::filesystem::path& file,
                                                     const std::string& method,
                                                     const RuntimeOptions& options = {});

// The same for Bundle::forward("torchscript").
PYINV_API std::unique_ptr<Generator> torch_generator(const std::filesystem::path& file,
                                                     const std::string& method,
                                                     const RuntimeOptions& options = {});

// The same for Bundle::encode("torchscript").
PYINV_API std::unique_ptr<Encoder> torch_encoder(const std::filesystem::path& file,
                                                 const std::string& method,
                                                 const RuntimeOptions& options = {});

// Of the libtorch that the library was built with and runs with alone: "2.13.0".
PYINV_API std::string torch_version();

}  // namespace pyinv
