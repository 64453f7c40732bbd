// Functions that ONNX Runtime runs.
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

// Opens ONNX Runtime's shared library, which pyinv is not linked to, and returns its version. Once
// in a process, before anything below: the same file again is free, another one is refused. Python
// wheels of onnxruntime carry it as onnxruntime/capi/libonnxruntime.so.<version>.
// Throws std::runtime_error: no such file, not an ONNX Runtime, or older than 1.17.
PYINV_API std::string load_onnxruntime(const std::filesystem::path& library);

// The objective in an ONNX file, or the normal equations there:
//   const BundleFunction& function = bundle.objective(loss, "onnx");
//   onnx_objective(bundle.file(function), function.operators, options)
// `operators` must be the file's; the CPU needs none.
// Throws std::runtime_error if the file is no such graph, DeviceError if this ONNX Runtime cannot
// use the device, or cannot run these operators on it, OutOfMemory; std::invalid_argument if
// `operators` is empty and the device is a GPU.
PYINV_API std::unique_ptr<Objective> onnx_objective(const std::filesystem::path& file,
                                                    const OnnxOperators& operators,
                                                    const RuntimeOptions& options = {});

// The generator in an ONNX file: Bundle::file(Bundle::forward("onnx")). Throws as onnx_objective.
PYINV_API std::unique_ptr<Generator> onnx_generator(const std::filesystem::path& file,
                                                    const RuntimeOptions& options = {});

// The encoder in an ONNX file: Bundle::file(Bundle::encode("onnx")). Throws as onnx_objective.
PYINV_API std::unique_ptr<Encoder> onnx_encoder(const std::filesystem::path& file,
                                                const RuntimeOptions& options = {});

}  // namespace pyinv
