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
// Throws std::runtime_error: no such file, not an ONNX Runtime, or older than 1.17.
PYINV_API std::string load_onnxruntime(const std::filesystem::path& library);

// Loads the objective, or the normal equations, in an ONNX file:
//   const BundleFunction& function = bundle.objective(loss, "onnx");
//   onnx_objective(bundle.file(function), function.operators, options)
// `operators` must be those of the file; it may be empty on the CPU.
// Throws std::runtime_error if the file is not an objective, DeviceError if this ONNX Runtime
// cannot use the device or cannot run these operators on it, OutOfMemory, and std::invalid_argument
// if `operators` is empty and the device is a GPU.
PYINV_API std::unique_ptr<Objective> onnx_objective(const std::filesystem::path& file,
                                                    const OnnxOperators& operators,
                                                    const RuntimeOptions& options = {});

// Loads the generator in Bundle::file(Bundle::forward("onnx")). Throws as onnx_objective.
PYINV_API std::unique_ptr<Generator> onnx_generator(const std::filesystem::path& file,
                                                    const RuntimeOptions& options = {});

// Loads the encoder in Bundle::file(Bundle::encode("onnx")). Throws as onnx_objective.
PYINV_API std::unique_ptr<Encoder> onnx_encoder(const std::filesystem::path& file,
                                                const RuntimeOptions& options = {});

}  // namespace pyinv
