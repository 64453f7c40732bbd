// An ONNX file and the files with its weights, read into memory.
//
// Sessions are made from memory, because ONNX Runtime would map the files: a program that cuts or
// overwrites one would end the process, or change results. What is loaded is also what was compared
// with the manifest.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "pyinv/bundle.h"

namespace pyinv::ort {

// The files that a graph may read, by name. Empty: any in its folder.
using Files = std::map<std::string, FileRecord>;

struct ModelFiles {
  std::string graph;
  std::map<std::string, std::string> weights;  // by file name
  // Whether the weights are larger than kMostInMemory. Then they are not here; ONNX Runtime maps
  // the files, which were compared with the manifest before.
  bool mapped = false;
};

inline constexpr int64_t kMostInMemory = int64_t{2} << 30;  // bytes

// Throws std::runtime_error: a file cannot be read, is not among `files` or not as recorded; the
// graph is not ONNX, or names a file that is not in its folder.
ModelFiles read_model(const std::filesystem::path& file, const Files& files);

}  // namespace pyinv::ort
