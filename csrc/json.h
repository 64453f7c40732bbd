// A small, strict JSON parser (RFC 8259) for manifests and rules.
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

// An error in the text; the message has its location.
class PYINV_API Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Value;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in the order of the text

// A number without fraction and exponent is an int64_t if it fits; any other number is a double.
// Strings are UTF-8.
struct Value {
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> data = nullptr;
};

// Throws Error: not JSON, nested deeper than 64, a duplicate key in an object, half a surrogate
// pair, text that is not UTF-8, a number out of the range of a double. RFC 8259 leaves the last
// five to the parser.
PYINV_API Value parse(std::string_view text);

// A value and its path in the document, which error messages include: "stages[0].solver".
class Node {
 public:
  // `path` is the name of the document in error messages.
  explicit Node(const Value& value, std::string path) : value_(&value), path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  Node operator[](std::string_view key) const;                // throws Error if it is missing
  std::optional<Node> find(std::string_view key) const;       // empty for null too
  std::vector<std::pair<std::string, Node>> members() const;  // of an object
  std::vector<Node> items() const;                            // of an array
  const Value& value() const { return *value_; }

  double number() const;  // finite
  int64_t whole() const;
  bool flag() const;
  const std::string& text() const;

  // "<path> <problem>"
  [[noreturn]] void fail(const std::string& problem) const;
  [[noreturn]] void expected(const std::string& what) const;  // adds the actual value

 private:
  Node child(std::string_view key, const Value& value) const;

  const Value* value_;
  std::string path_;
};

}  // namespace pyinv::json
