// Load functions for ONNX Runtime.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "pyinv/api.h"
#include "pyinv/bundle.h"
#include "pyinv/encoder.h"
#include "pyinv/generator.h"
#include "pyinv/objective.h"

namespace pyinv {

// Opens ONNX Runtime's shared library, which pyinv is not linked to, and returns its version. Call
// it before the functions below. Opening the same file again does nothing; a process cannot open a
// second library. The Python wheel has it as onnxruntime/capi/libonnxruntime.so.<version>.
// Throws std::runtime_error: no such file, not an ONNX Runtime, or older than 1.18.
PYINV_API std::string load_onnxruntime(const std::filesystem::path& library);

// Loads an objective, or normal equations: Bundle::objective(loss, "onnx"), for one. The function's
// file and its weights must have the SHA-256 that the bundle's manifest records, and no other file
// is read. Up to 2 GiB of weights are read into memory; more are mapped, and the files must then
// stay as they are while the function is in use.
// Throws std::runtime_error if the file is not an objective or was changed, DeviceError if this
// ONNX Runtime cannot use the device or cannot run the file's operators on it, OutOfMemory.
PYINV_API std::unique_ptr<Objective> onnx_objective(const Bundle& bundle,
                                                    const BundleFunction& function,
                                                    const RuntimeOptions& options = {});

// Loads Bundle::forward("onnx"). Throws as onnx_objective.
PYINV_API std::unique_ptr<Generator> onnx_generator(const Bundle& bundle,
                                                    const BundleFunction& function,
                                                    const RuntimeOptions& options = {});

// Loads Bundle::encode("onnx"). Throws as onnx_objective.
PYINV_API std::unique_ptr<Encoder> onnx_encoder(const Bundle& bundle,
                                                const BundleFunction& function,
                                                const RuntimeOptions& options = {});

}  // namespace pyinv
