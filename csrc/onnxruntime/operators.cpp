#include "onnxruntime/operators.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

namespace pyinv::ort {
namespace {

// A protocol buffer message: fields one after the other, each a key (number and wire type) and a
// value. Field numbers below are those of onnx.proto.
class Message {
 public:
  explicit Message(std::string_view bytes) : bytes_(bytes) {}

  // Calls visit(number, bytes) for each field that has a length: texts and messages.
  template <class Visit>
  void each(const Visit& visit) {
    while (!bytes_.empty()) {
      const uint64_t key = varint();
      switch (key & 7) {
        case 0:
          varint();
          break;
        case 1:
          take(8);
          break;
        case 2:
          visit(key >> 3, take(varint()));
          break;
        case 5:
          take(4);
          break;
        default:
          throw std::runtime_error("not an ONNX model");
      }
    }
  }

 private:
  std::string_view take(uint64_t count) {
    if (count > bytes_.size()) throw std::runtime_error("not an ONNX model, or cut short");
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw std::runtime_error("not an ONNX model");
  }

  std::string_view bytes_;
};

// The deepest nesting of messages that is read. A graph in a graph takes three: node, attribute,
// graph.
constexpr int kMaxDepth = 64;

struct Graph;

struct Node {
  std::string name;  // qualified
  std::vector<std::string> inputs, outputs;
  std::vector<Graph> subgraphs;
};

// The main graph, a subgraph, or the body of a function.
struct Graph {
  std::vector<std::string> inputs, outputs;
  std::vector<Node> nodes;
};

struct Model {
  Graph graph;
  std::map<std::string, Graph> functions;  // by qualified name
};

std::string qualified(const std::string& domain, const std::string& name) {
  return domain.empty() || domain == "ai.onnx" ? name : domain + ":" + name;
}

Graph read_graph(std::string_view bytes, int depth);

Node read_node(std::string_view bytes, int depth) {
  if (depth > kMaxDepth) throw std::runtime_error("not an ONNX model, or nested too deeply");
  Node node;
  std::string name, domain;
  Message(bytes).each([&](uint64_t field, std::string_view value) {
    if (field == 1) node.inputs.emplace_back(value);
    if (field == 2) node.outputs.emplace_back(value);
    if (field == 4) name = value;
    if (field == 7) domain = value;
    if (field != 5) return;
    Message(value).each([&](uint64_t part, std::string_view graph) {
      if (part == 6 || part == 11) node.subgraphs.push_back(read_graph(graph, depth + 2));
    });
  });
  node.name = qualified(domain, name);
  return node;
}

std::string read_value_name(std::string_view bytes) {
  std::string name;
  Message(bytes).each([&](uint64_t field, std::string_view value) {
    if (field == 1) name = value;
  });
  return name;
}

Graph read_graph(std::string_view bytes, int depth) {
  Graph graph;
  Message(bytes).each([&](uint64_t field, std::string_view value) {
    if (field == 1) graph.nodes.push_back(read_node(value, depth + 1));
    if (field == 11) graph.inputs.push_back(read_value_name(value));
    if (field == 12) graph.outputs.push_back(read_value_name(value));
  });
  return graph;
}

void read_function(std::string_view bytes, Model& model) {
  Graph body;
  std::string name, domain;
  Message(bytes).each([&](uint64_t field, std::string_view value) {
    if (field == 1) name = value;
    if (field == 4) body.inputs.emplace_back(value);
    if (field == 5) body.outputs.emplace_back(value);
    if (field == 7) body.nodes.push_back(read_node(value, 2));
    if (field == 10) domain = value;
  });
  model.functions[qualified(domain, name)] = std::move(body);
}

Model read_model(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream || bytes.empty()) throw std::runtime_error(file.string() + ": cannot be read");
  Model model;
  try {
    Message(bytes).each([&](uint64_t field, std::string_view value) {
      if (field == 7) model.graph = read_graph(value, 1);
      if (field == 25) read_function(value, model);
    });
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(file.string() + ": " + error.what());
  }
  return model;
}

void add_operators(const Graph& graph, std::set<std::string>& names) {
  for (const Node& node : graph.nodes) {
    names.insert(node.name);
    for (const Graph& subgraph : node.subgraphs) add_operators(subgraph, names);
  }
}

// Operators whose CUDA kernels get their parameters by value. Others may copy small arrays from
// pinned host memory, which ONNX Runtime frees at the end of the run: while a stream is recorded
// that is an error that ends the process (its pull request 32081 has seen it), or the recording
// frees them again each time it is played. Control flow reads its condition on the host.
constexpr std::string_view kRecordable[] = {
    "Abs",
    "Add",
    "And",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Constant",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Flatten",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "Identity",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
};

// Further operators that have CUDA kernels for float32, whatever their attributes. ConvTranspose is
// recordable but not here: with asymmetric padding it is the CPU's.
constexpr std::string_view kWithCuda[] = {
    "AveragePool",
    "Ceil",
    "Concat",
    "DepthToSpace",
    "Dropout",
    "Einsum",
    "Expand",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "MatMul",
    "MaxPool",
    "PRelu",
    "Pad",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "Resize",
    "Round",
    "Size",
    "Slice",
    "Softmax",
    "SpaceToDepth",
    "Split",
    "Sum",
    "Tile",
};

// What ONNX Runtime may take out of a graph or move, so that the next operator reads its input.
constexpr std::string_view kTransparent[] = {
    "Cast", "Dropout", "Expand", "Identity", "Slice", "Transpose",
};

template <size_t size>
bool is_in(const std::string_view (&names)[size], const std::string& name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool has_cuda(const std::string& name) {
  return name != "ConvTranspose" && (is_in(kRecordable, name) || is_in(kWithCuda, name));
}

// Follows inputs of a graph to the operators that read them.
class Readers {
 public:
  explicit Readers(const Model& model) : model_(model) {}

  std::set<std::string> without_cuda;

  // `names` holds the inputs' names and gets those of what may turn out to be the same tensors.
  void follow(const Graph& graph, std::set<std::string>& names) {
    for (const Node& node : graph.nodes) {
      // A subgraph sees the names around it.
      for (const Graph& subgraph : node.subgraphs) {
        std::set<std::string> inside = names;
        follow(subgraph, inside);
      }
      std::set<size_t> read;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (names.count(node.inputs[i])) read.insert(i);
      }
      if (read.empty()) continue;
      if (const auto body = model_.functions.find(node.name); body != model_.functions.end()) {
        for (size_t i : follow_call(node.name, body->second, read)) {
          if (i < node.outputs.size() && !node.outputs[i].empty()) names.insert(node.outputs[i]);
        }
        continue;
      }
      if (!has_cuda(node.name)) without_cuda.insert(node.name);
      if (is_in(kTransparent, node.name) && !node.outputs.empty()) names.insert(node.outputs[0]);
    }
  }

 private:
  // Each call of a function with the same inputs once, so that functions may call functions.
  std::set<size_t> follow_call(const std::string& name, const Graph& body,
                               const std::set<size_t>& read) {
    const auto [found, is_new] = calls_.try_emplace({name, read});
    if (!is_new) return found->second;
    std::set<std::string> names;
    for (size_t i : read) {
      if (i < body.inputs.size()) names.insert(body.inputs[i]);
    }
    follow(body, names);
    std::set<size_t> passed;
    for (size_t i = 0; i < body.outputs.size(); ++i) {
      if (names.count(body.outputs[i])) passed.insert(i);
    }
    return calls_[{name, read}] = passed;
  }

  const Model& model_;
  std::map<std::pair<std::string, std::set<size_t>>, std::set<size_t>> calls_;
};

}  // namespace

std::set<std::string> operators_in(const std::filesystem::path& file) {
  const Model model = read_model(file);
  std::set<std::string> names;
  add_operators(model.graph, names);
  for (const auto& [name, body] : model.functions) add_operators(body, names);
  for (const auto& [name, body] : model.functions) names.erase(name);
  return names;
}

bool recordable(const std::filesystem::path& file) {
  const std::set<std::string> operators = operators_in(file);
  return std::all_of(operators.begin(), operators.end(),
                     [](const std::string& name) { return is_in(kRecordable, name); });
}

std::set<std::string> readers_without_cuda(const std::filesystem::path& file) {
  const Model model = read_model(file);
  std::set<std::string> names(model.graph.inputs.begin(), model.graph.inputs.end());
  Readers readers(model);
  readers.follow(model.graph, names);
  return readers.without_cuda;
}

}  // namespace pyinv::ort
