// A small strict reader of JSON (RFC 8259), for manifests and rules.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "pyinv/api.h"

namespace pyinv::json {

// What is wrong with the text, and where.
class PYINV_API Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Value;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in the text's order

// A number without fraction and exponent that fits is an int64_t, any other a double. Strings are
// UTF-8.
struct Value {
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> data = nullptr;
};

// Throws Error: not JSON, nested deeper than 64, a key twice in an object, half a surrogate pair,
// text that is not UTF-8, a number beyond a double. RFC 8259 leaves the last five to the reader.
PYINV_API Value parse(std::string_view text);

// A value, and where it stands in the document, which every error says: "stages[0].solver".
class Node {
 public:
  // `path` is what the errors call the whole document.
  explicit Node(const Value& value, std::string path) : value_(&value), path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  Node operator[](std::string_view key) const;                // throws Error if it is not there
  std::optional<Node> find(std::string_view key) const;       // empty for null too
  std::vector<std::pair<std::string, Node>> members() const;  // of an object
  std::vector<Node> items() const;                            // of an array

  double number() const;  // finite
  int64_t whole() const;
  bool flag() const;
  const std::string& text() const;

  // "<path> <problem>"
  [[noreturn]] void fail(const std::string& problem) const;
  [[noreturn]] void expected(const std::string& what) const;  // and says what came

 private:
  Node child(std::string_view key, const Value& value) const;

  const Value* value_;
  std::string path_;
};

}  // namespace pyinv::json
