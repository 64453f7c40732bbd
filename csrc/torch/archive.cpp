#include "torch/archive.h"

#include <caffe2/serialize/file_adapter.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>

#include "torchscript/operators.h"
#include "torchscript/pickle.h"
#include "torchscript/source.h"

namespace pyinv::torchscript {
namespace {

using caffe2::serialize::PyTorchStreamReader;

// torch's reader cuts longer names, so that they could end in anything.
constexpr size_t kLongestName = 400;

[[noreturn]] void refuse_operator(const std::string& name) {
  throw Refused("it uses " + name + ", which pyinv does not run from a file");
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

void check_source(std::string_view source) {
  for (const std::string& name : unlisted_operators(source)) {
    if (!torch::jit::getAllOperatorsFor(c10::Symbol::fromQualString(name)).empty()) {
      refuse_operator(name);
    }
  }
}

// Memory is taken for what the records say, which should be about what the file has.
void check_sizes(PyTorchStreamReader& reader, const std::vector<std::string>& names, size_t size) {
  constexpr size_t kMostCode = size_t{64} << 20;  // the only records that torch compresses
  size_t most = size + kMostCode;
  for (const std::string& name : names) {
    const size_t record = reader.getRecordSize(name);
    if (record > most) {
      throw Refused("it unpacks to far more than its " + std::to_string(size) + " bytes");
    }
    most -= record;
  }
}

void check_records(PyTorchStreamReader& reader, size_t size) {
  const std::vector<std::string> names = reader.getAllRecords();
  check_sizes(reader, names, size);
  for (const std::string& name : names) {
    if (name.size() > kLongestName) throw Refused("it has a record with a long name");
    // torch finds records whatever their case.
    if (!lower(name).starts_with("code/") || name.ends_with(".debug_pkl")) continue;
    const auto [data, bytes] = reader.getRecord(name);
    check_source({static_cast<const char*>(data.get()), bytes});
  }
  for (const std::string folder : {"constants", "data"}) {
    if (!reader.hasRecord(folder + ".pkl")) throw Refused("it is not a TorchScript file");
    const auto [data, bytes] = reader.getRecord(folder + ".pkl");
    for (const Storage& storage : storages({static_cast<const char*>(data.get()), bytes})) {
      if (storage.bytes > reader.getRecordSize(folder + "/" + storage.record)) {
        throw Refused("it has a tensor that reaches beyond its memory");
      }
    }
  }
}

void check_tensor(const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  if (tensor.layout() != c10::kStrided || tensor.is_quantized() || tensor.is_nested()) {
    throw Refused("it has a tensor that is sparse, quantized or nested");
  }
  const int64_t capacity = static_cast<int64_t>(tensor.storage().nbytes() / tensor.element_size());
  int64_t last = tensor.storage_offset();  // the last element's place in memory
  bool inside = last >= 0 && last < capacity;
  for (int64_t axis = 0; inside && axis < tensor.dim(); ++axis) {
    const int64_t steps = tensor.size(axis) - 1, stride = tensor.stride(axis);
    inside = steps >= 0 && stride >= 0 && (!stride || steps <= (capacity - 1 - last) / stride);
    if (inside) last += steps * stride;
  }
  if (!inside && tensor.numel() != 0) {
    throw Refused("it has a tensor that reaches beyond its memory");
  }
}

void check_value(const c10::IValue& value) {
  value.visit([](const c10::IValue& part) {
    if (part.isTensor()) check_tensor(part.toTensor());
    return false;
  });
}

void check_block(const torch::jit::Block& block) {
  for (const torch::jit::Node* node : block.nodes()) {
    const std::string kind = node->kind().toQualString();
    if (!allows(kind)) refuse_operator(kind);
    if (kind == "prim::Constant" && node->outputs().size() == 1) {
      if (const auto value = torch::jit::toIValue(node->output())) check_value(*value);
    }
    for (const torch::jit::Block* inner : node->blocks()) check_block(*inner);
  }
}

}  // namespace

torch::jit::Module load_module(const std::string& file, c10::Device device) {
  // One open file, so that what is checked is what is loaded.
  const auto opened = std::make_shared<caffe2::serialize::FileAdapter>(file);
  PyTorchStreamReader reader(opened);
  check_records(reader, opened->size());
  auto module = torch::jit::load(opened, device, /*load_debug_files=*/false);
  check_value(module._ivalue());
  return module;
}

void check_graph(torch::jit::Graph& graph) {
  const auto inlined = graph.copy();
  torch::jit::Inline(*inlined);
  check_block(*inlined->block());
}

}  // namespace pyinv::torchscript
