#include "onnxruntime/model_files.h"

#include <cstdint>
#include <fstream>
#include <initializer_list>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "printable.h"
#include "sha256.h"

namespace pyinv::ort {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& problem) { throw std::runtime_error(problem); }

// Protocol buffers' wire format: a message is a sequence of fields, each with its number.
class Message {
 public:
  explicit Message(std::string_view bytes) : rest_(bytes) {}

  // Moves to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    number_ = key >> 3;
    bytes_ = {};
    switch (key & 7) {
      case 0:
        varint();
        return true;
      case 1:
        take(8);
        return true;
      case 2:
        bytes_ = take(varint());
        return true;
      case 5:
        take(4);
        return true;
      default:
        fail("not an ONNX file, or damaged");
    }
  }

  uint64_t number() const { return number_; }
  std::string_view bytes() const { return bytes_; }  // of a message or a text, else empty

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= shift < 64 ? uint64_t{byte & 0x7Fu} << shift : 0;
      if (byte < 0x80) return value;
    }
    fail("not an ONNX file, or damaged");
  }

  std::string_view take(uint64_t count) {
    if (count > rest_.size()) fail("not an ONNX file, or damaged");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_, bytes_;
  uint64_t number_ = 0;
};

enum class Kind { model, graph, function, node, attribute, sparse, tensor, entry };

struct Member {
  Kind kind;
  uint64_t number;
  Kind holds;
};

// Where tensors are in onnx.proto, whose field numbers never change.
constexpr Member kMembers[] = {
    {Kind::model, 7, Kind::graph},         {Kind::model, 25, Kind::function},
    {Kind::graph, 1, Kind::node},          {Kind::graph, 5, Kind::tensor},
    {Kind::graph, 15, Kind::sparse},       {Kind::function, 7, Kind::node},
    {Kind::function, 11, Kind::attribute}, {Kind::node, 5, Kind::attribute},
    {Kind::attribute, 5, Kind::tensor},    {Kind::attribute, 6, Kind::graph},
    {Kind::attribute, 10, Kind::tensor},   {Kind::attribute, 11, Kind::graph},
    {Kind::attribute, 22, Kind::sparse},   {Kind::attribute, 23, Kind::sparse},
    {Kind::sparse, 1, Kind::tensor},       {Kind::sparse, 2, Kind::tensor},
    {Kind::tensor, 13, Kind::entry},
};
constexpr int kMaxDepth = 100;  // protobuf's own limit

// Collects the names of the files that the message's tensors are in.
void find_files(std::string_view bytes, Kind kind, int depth, std::set<std::string>& found) {
  if (depth > kMaxDepth) fail("not an ONNX file: nested too deep");
  Message message(bytes);
  if (kind == Kind::entry) {
    std::string key, value;
    while (message.next()) {
      if (message.number() == 1) key = message.bytes();
      if (message.number() == 2) value = message.bytes();
    }
    if (key == "location") found.insert(value);
    return;
  }
  while (message.next()) {
    for (const Member& member : kMembers) {
      if (member.kind == kind && member.number == message.number()) {
        find_files(message.bytes(), member.holds, depth + 1, found);
      }
    }
  }
}

bool is_plain(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

// The record of a file that may be read; null if there are no records.
const FileRecord* record_of(const std::string& name, const Files& files) {
  if (files.empty()) return nullptr;
  const auto found = files.find(name);
  if (found == files.end()) {
    fail("the graph reads a file that the manifest does not list: \"" + printable(name) + "\"");
  }
  return &found->second;
}

[[noreturn]] void fail_file(const fs::path& path, const std::string& problem) {
  fail(printable(path.filename().string()) + ": " + problem);
}

int64_t size_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error) fail_file(path, "cannot be read (" + error.message() + ")");
  return static_cast<int64_t>(size);
}

void check_digest(const fs::path& path, const FileRecord& record, const std::string& digest) {
  if (digest == record.sha256) return;
  fail_file(path,
            "its SHA-256 is not the manifest's, so it was changed since the bundle was opened");
}

std::string read(const fs::path& path, const FileRecord* record) {
  std::string content(static_cast<size_t>(size_of(path)), '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(content.size()))) {
    fail_file(path, "cannot be read, or was cut");
  }
  if (record) {
    Sha256 digest;
    digest.add(content);
    check_digest(path, *record, digest.hexadecimal());
  }
  return content;
}

}  // namespace

ModelFiles read_model(const fs::path& file, const Files& files) {
  ModelFiles model;
  model.graph = read(file, record_of(file.filename().string(), files));
  std::set<std::string> names;
  find_files(model.graph, Kind::model, 0, names);
  int64_t bytes = 0;
  for (const std::string& name : names) {
    if (!is_plain(name)) {
      fail("the graph reads a file that is not in its folder: \"" + printable(name) + "\"");
    }
    record_of(name, files);
    bytes += size_of(file.parent_path() / name);
  }
  model.mapped = bytes > kMostInMemory;
  for (const std::string& name : names) {
    const fs::path path = file.parent_path() / name;
    const FileRecord* record = record_of(name, files);
    if (!model.mapped) {
      model.weights.emplace(name, read(path, record));
    } else if (record) {
      check_digest(path, *record, sha256_of(path));
    }
  }
  return model;
}

}  // namespace pyinv::ort
