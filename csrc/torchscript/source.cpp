#include "torchscript/source.h"

#include <set>

#include "torchscript/operators.h"

namespace pyinv::torchscript {
namespace {

// torch's compiler calls itself for each bracket, each level of indentation, each elif, and each
// operator and attribute of an expression. torch itself writes few of each.
constexpr int kDeepest = 200, kLongest = 2000;
constexpr const char* kTooDeep = "its code is nested too deeply";

// As in the C locale, whatever the process's is.
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool starts_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Walks the source's names, as torch's lexer divides it: identifiers and keywords, and the strings
// that getattr() takes as names.
class Names {
 public:
  explicit Names(std::string_view source) : source_(source) {}

  // The next name; empty at the end.
  std::string_view next() {
    after_dot_ = false;
    while (at_ < source_.size()) {
      const char c = source_[at_];
      if (starts_name(c)) return identifier();
      if (c == '"' || c == '\'') {
        const std::string_view text = string();
        if (in_getattr_ > 0) return attribute(text);
        after_dot_ = false;
        continue;
      }
      // torch writes neither; how it reads them decides what is code.
      if (c == '#') throw Refused("its code has a comment");
      if (c == '\\') throw Refused("its code has a backslash");
      nest(c);
      if (!is_space(c)) after_dot_ = c == '.';
      ++at_;
    }
    return {};
  }

  // Whether the name is an attribute of what is before it.
  bool after_dot() const { return after_dot_; }

  // Whether the name is that of an argument or variable, with its value behind.
  bool is_assigned() const { return following() == '=' && following(1) != '='; }

 private:
  std::string_view identifier() {
    const size_t start = at_;
    while (at_ < source_.size() && (starts_name(source_[at_]) || is_digit(source_[at_]))) ++at_;
    const std::string_view name = source_.substr(start, at_ - start);
    lengthen();
    if (name == "elif" && ++elifs_ > kDeepest) throw Refused(kTooDeep);
    if (name == "getattr" && !after_dot_) {
      if (following() != '(') throw Refused("its code uses getattr without a call");
      if (!in_getattr_) in_getattr_ = depth() + 1;
    }
    return name;
  }

  // A string within the brackets of getattr(): torch would join several, and read escapes.
  std::string_view attribute(std::string_view text) {
    const char after = following();
    if (text.find('\\') != std::string_view::npos || (after != ')' && after != ',')) {
      throw Refused("its code uses getattr with more than a plain name");
    }
    after_dot_ = true;
    return text.empty() ? "\"\"" : text;
  }

  char following(size_t ahead = 0) const {
    size_t i = at_;
    while (i < source_.size() && is_space(source_[i])) ++i;
    return i + ahead < source_.size() ? source_[i + ahead] : '\n';
  }

  // Moves behind a string, and returns what is between its quotes.
  std::string_view string() {
    const char quote = source_[at_];
    const std::string end(source_.substr(at_, 3) == std::string(3, quote) ? 3 : 1, quote);
    const size_t start = at_ + end.size();
    for (size_t i = start; i < source_.size(); i += source_[i] == '\\' ? 2 : 1) {
      if (source_.substr(i, end.size()) == end) {
        at_ = i + end.size();
        return source_.substr(start, i - start);
      }
      if (source_[i] == '\n' && end.size() == 1) break;
    }
    throw Refused("a string in its code has no end");
  }

  void nest(char c) {
    if (c == '(' || c == '[' || c == '{') {
      lengthen();
      lengths_.push_back(0);
      if (depth() > kDeepest) throw Refused(kTooDeep);
    } else if (c == ')' || c == ']' || c == '}') {
      if (depth() == 0) throw Refused("a bracket in its code has no beginning");
      lengths_.pop_back();
      if (depth() < in_getattr_) in_getattr_ = 0;
    } else if (c == ',') {
      lengths_.back() = 0;
    } else if (c == '\n') {
      indent_ = 0;
      if (depth() == 0) lengths_.back() = 0;
    } else if (!is_space(c)) {
      lengthen();
    } else if (++indent_ > 2 * kDeepest && is_line_start()) {
      throw Refused(kTooDeep);
    }
  }

  int depth() const { return static_cast<int>(lengths_.size()) - 1; }

  void lengthen() {
    if (++lengths_.back() > kLongest) throw Refused("an expression in its code is too long");
  }

  bool is_line_start() const {
    const size_t start = source_.rfind('\n', at_) + 1;
    return source_.find_first_not_of(" \t", start) >= at_;
  }

  std::string_view source_;
  size_t at_ = 0;
  // Of the expressions that are not yet complete, each within the brackets of the one before.
  std::vector<int> lengths_ = {0};
  int indent_ = 0, elifs_ = 0;
  int in_getattr_ = 0;  // the depth within the outermost getattr(); 0: outside
  bool after_dot_ = false;
};

}  // namespace

std::vector<std::string> unlisted_operators(std::string_view source) {
  std::set<std::string> found;
  const auto add = [&](const std::string& name) {
    if (!allows(name)) found.insert(name);
  };
  Names names(source);
  std::string before, space;
  for (std::string_view name = names.next(); !name.empty(); name = names.next()) {
    if (name == "__setstate__") {
      throw Refused("it has a __setstate__, which would run while the file is read");
    }
    if (name == "classes" && before == "torch" && names.after_dot()) {
      throw Refused("it uses objects of torch.classes");
    }
    if (!names.is_assigned()) add("aten::" + std::string(name));
    // ops.space.name, with which torch writes all operators except aten's
    if (!space.empty()) add(space + "::" + std::string(name));
    space = "";
    if (before == "ops") {
      if (!names.after_dot()) throw Refused("its code uses ops without an operator");
      space = name;
    }
    before = name == "ops" && names.after_dot() ? "" : name;
  }
  return {found.begin(), found.end()};
}

}  // namespace pyinv::torchscript
