#include "json.h"

#include <algorithm>
#include <charconv>
#include <unordered_set>

#include "printable.h"

namespace pyinv::json {
namespace {

constexpr int kMaxDepth = 64;

bool is_digit(char character) { return character >= '0' && character <= '9'; }

void append_utf8(std::string& text, uint32_t code) {
  const auto byte = [&text](uint32_t value) { text += static_cast<char>(value); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xC0 | code >> 6);
    byte(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    byte(0xE0 | code >> 12);
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  } else {
    byte(0xF0 | code >> 18);
    byte(0x80 | (code >> 12 & 0x3F));
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    Value value = read_value(0);
    skip_space();
    if (at_ < text_.size()) fail("expected the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    const std::string_view before = text_.substr(0, at_);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t start = before.rfind('\n') + 1;  // npos + 1 is 0
    std::string found = "the end";
    if (at_ < text_.size()) {
      const size_t length = printable_length(text_.substr(at_));
      found = length ? "'" + std::string(text_.substr(at_, length)) + "'"
                     : "byte " + std::to_string(static_cast<uint8_t>(text_[at_]));
    }
    throw Error("line " + std::to_string(line) + ", column " + std::to_string(at_ - start + 1) +
                ": " + problem + ", found " + found);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char character) {
    if (at_ == text_.size() || text_[at_] != character) return false;
    ++at_;
    return true;
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  Value read_value(int depth) {
    skip_space();
    switch (peek()) {
      case '{':
        return {read_object(depth)};
      case '[':
        return {read_array(depth)};
      case '"':
        return {read_string()};
      case 't':
        return read_word("true", {true});
      case 'f':
        return read_word("false", {false});
      case 'n':
        return read_word("null", {nullptr});
      default:
        if (peek() == '-' || is_digit(peek())) return read_number();
        fail("expected a value");
    }
  }

  Value read_word(std::string_view word, Value value) {
    if (text_.substr(at_, word.size()) != word) fail("expected a value");
    at_ += word.size();
    return value;
  }

  void enter(int depth) {
    if (depth == kMaxDepth) fail("expected at most " + std::to_string(kMaxDepth) + " levels");
    ++at_;
    skip_space();
  }

  Object read_object(int depth) {
    Object object;
    std::unordered_set<std::string> keys;
    enter(depth);
    if (take('}')) return object;
    do {
      skip_space();
      if (peek() != '"') fail("expected a key in double quotes");
      const size_t start = at_;
      std::string key = read_string();
      if (!keys.insert(key).second) {
        at_ = start;
        fail("expected each key once, but \"" + printable(key) + "\" came before");
      }
      skip_space();
      if (!take(':')) fail("expected ':'");
      object.emplace_back(std::move(key), read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take('}')) fail("expected ',' or '}'");
    return object;
  }

  Array read_array(int depth) {
    Array array;
    enter(depth);
    if (take(']')) return array;
    do {
      array.push_back(read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("expected ',' or ']'");
    return array;
  }

  std::string read_string() {
    std::string string;
    ++at_;
    while (true) {
      if (at_ == text_.size()) fail("expected '\"'");
      if (take('"')) return string;
      if (take('\\')) {
        read_escape(string);
        continue;
      }
      if (static_cast<uint8_t>(text_[at_]) < ' ') fail("expected an escape for this character");
      const size_t length = utf8_length(text_.substr(at_));
      if (!length) fail("expected UTF-8");
      string.append(text_, at_, length);
      at_ += length;
    }
  }

  void read_escape(std::string& string) {
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const size_t known = at_ < text_.size() ? names.find(text_[at_]) : std::string_view::npos;
    if (known != std::string_view::npos) {
      ++at_;
      string += meanings[known];
      return;
    }
    if (!take('u')) fail("expected one of \"\\/bfnrtu after a backslash");
    uint32_t code = read_hex();
    if (code >= 0xDC00 && code <= 0xDFFF)
      fail("expected the first half of a surrogate pair before");
    if (code >= 0xD800 && code <= 0xDBFF) {
      if (!take('\\') || !take('u')) fail("expected the second half of a surrogate pair");
      const uint32_t second = read_hex();
      if (second < 0xDC00 || second > 0xDFFF) fail("expected the second half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }
    append_utf8(string, code);
  }

  uint32_t read_hex() {
    const std::string_view digits = text_.substr(at_, 4);
    uint32_t code = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (error != std::errc() || end - digits.data() != 4) fail("expected four hexadecimal digits");
    at_ += 4;
    return code;
  }

  void skip_digits() {
    if (!is_digit(peek())) fail("expected a digit");
    while (is_digit(peek())) ++at_;
  }

  Value read_number() {
    const size_t start = at_;
    bool whole = true;
    take('-');
    if (!take('0')) skip_digits();
    if (take('.')) {
      whole = false;
      skip_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      skip_digits();
    }
    const char *first = text_.data() + start, *last = text_.data() + at_;
    int64_t count = 0;
    if (whole && std::from_chars(first, last, count).ec == std::errc()) return {count};
    double number = 0.0;
    if (std::from_chars(first, last, number).ec != std::errc()) {
      at_ = start;
      fail("expected a number within the range of a double");
    }
    return {number};
  }

  const std::string_view text_;
  size_t at_ = 0;
};

std::string describe(const Value& value) {
  struct Describe {
    std::string operator()(std::nullptr_t) const { return "null"; }
    std::string operator()(bool flag) const { return flag ? "true" : "false"; }
    std::string operator()(int64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const {
      char text[32];
      return {text, std::to_chars(text, text + sizeof text, number).ptr};
    }
    std::string operator()(const std::string& text) const { return "\"" + printable(text) + "\""; }
    std::string operator()(const Array&) const { return "an array"; }
    std::string operator()(const Object&) const { return "an object"; }
  };
  return std::visit(Describe{}, value.data);
}

// The data of a node's value, which should be `what`.
template <class Data>
const Data& get(const Node& node, const Value& value, const char* what) {
  if (const auto* data = std::get_if<Data>(&value.data)) return *data;
  node.expected(what);
}

}  // namespace

Value parse(std::string_view text) { return Parser(text).document(); }

void Node::fail(const std::string& problem) const { throw Error(path_ + " " + problem); }

void Node::expected(const std::string& what) const {
  fail("must be " + what + ", got " + describe(*value_));
}

Node Node::child(std::string_view key, const Value& value) const {
  return Node(value, path_ + "." + printable(key));
}

std::optional<Node> Node::find(std::string_view key) const {
  for (const auto& [name, value] : get<Object>(*this, *value_, "an object")) {
    if (name == key && !std::holds_alternative<std::nullptr_t>(value.data)) {
      return child(key, value);
    }
  }
  return std::nullopt;
}

Node Node::operator[](std::string_view key) const {
  const std::optional<Node> found = find(key);
  if (!found) fail("has no \"" + std::string(key) + "\"");
  return *found;
}

std::vector<std::pair<std::string, Node>> Node::members() const {
  std::vector<std::pair<std::string, Node>> members;
  for (const auto& [name, value] : get<Object>(*this, *value_, "an object")) {
    members.emplace_back(name, child(name, value));
  }
  return members;
}

std::vector<Node> Node::items() const {
  const Array& array = get<Array>(*this, *value_, "an array");
  std::vector<Node> items;
  items.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    items.emplace_back(array[i], path_ + "[" + std::to_string(i) + "]");
  }
  return items;
}

double Node::number() const {
  if (const auto* whole = std::get_if<int64_t>(&value_->data)) return static_cast<double>(*whole);
  return get<double>(*this, *value_, "a number");
}

int64_t Node::whole() const { return get<int64_t>(*this, *value_, "a whole number"); }
bool Node::flag() const { return get<bool>(*this, *value_, "true or false"); }
const std::string& Node::text() const { return get<std::string>(*this, *value_, "a text"); }

}  // namespace pyinv::json
