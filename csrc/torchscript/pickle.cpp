#include "torchscript/pickle.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "printable.h"
#include "torchscript/source.h"

namespace pyinv::torchscript {
namespace {

[[noreturn]] void refuse() { throw Refused("it has a pickle that torch does not write"); }

// As much of a value as says what a storage is.
struct Value {
  enum Kind { other, text, name, number, tuple } kind = other;
  std::string characters = {};  // of a text, or the name of a class or function
  int64_t integer = 0;
  std::vector<std::shared_ptr<Value>> elements = {};
  int depth = 0;  // of what it contains
};
using Pointer = std::shared_ptr<Value>;

// Values are freed by as many nested calls.
constexpr int kDeepest = 1000;

// The bytes of an element.
uint64_t size_of(const std::string& storage_class) {
  static const std::map<std::string, uint64_t> sizes = {
      {"torch.BoolStorage", 1},         {"torch.ByteStorage", 1},
      {"torch.CharStorage", 1},         {"torch.ShortStorage", 2},
      {"torch.HalfStorage", 2},         {"torch.BFloat16Storage", 2},
      {"torch.IntStorage", 4},          {"torch.FloatStorage", 4},
      {"torch.LongStorage", 8},         {"torch.DoubleStorage", 8},
      {"torch.ComplexFloatStorage", 8}, {"torch.ComplexDoubleStorage", 16},
  };
  const auto found = sizes.find(storage_class);
  if (found == sizes.end()) throw Refused("it has tensors of " + printable(storage_class));
  return found->second;
}

class Reader {
 public:
  explicit Reader(std::string_view pickle) : pickle_(pickle) {}

  std::vector<Storage> storages() {
    while (step()) {
    }
    return std::move(storages_);
  }

 private:
  // Carries out an instruction, as torch's Unpickler does; false at the end.
  bool step() {
    switch (static_cast<unsigned char>(take(1)[0])) {
      case 0x80:  // the protocol
        take(1);
        break;
      case '(':
        marks_.push_back(stack_.size());
        break;
      case 'N':   // None
      case 0x88:  // True
      case 0x89:  // False
      case '}':   // a dictionary
      case ']':   // a list
        push({});
        break;
      case ')':
        push({.kind = Value::tuple});
        break;
      case 'K':
        push({.kind = Value::number, .integer = integer(1)});
        break;
      case 'M':
        push({.kind = Value::number, .integer = integer(2)});
        break;
      case 'J':
        push({.kind = Value::number, .integer = static_cast<int32_t>(integer(4))});
        break;
      case 0x8a: {  // an integer with its length
        if (integer(1) != 8) refuse();
        push({.kind = Value::number, .integer = integer(8)});
        break;
      }
      case 'G':
        take(8);
        push({});
        break;
      case 'X':
        push({.kind = Value::text, .characters = std::string(take(integer(4)))});
        break;
      case 'c':
        global();
        break;
      case 'q':
        remember(integer(1));
        break;
      case 'r':
        remember(integer(4));
        break;
      case 'h':
        recall(integer(1));
        break;
      case 'j':
        recall(integer(4));
        break;
      case 't':
        push_tuple(pop_to_mark());
        break;
      case 0x85:
      case 0x86:
      case 0x87:
        push_tuple(pop(pickle_[at_ - 1] & 3));
        break;
      case 'e':  // items of a list
      case 'u':  // items of a dictionary
        put_into(pop_to_mark());
        break;
      case 0x81:  // an object without a state: its class stands for it
        pop(1);
        break;
      case 'R':  // a function's result
      case 'b':  // an object with a state
        made_of(pop(2));
        break;
      case 'Q':
        storage(*pop(1)[0]);
        push({});
        break;
      case '.':
        return false;
      default:
        refuse();
    }
    return true;
  }

  std::string_view take(size_t count) {
    if (count > pickle_.size() - at_) refuse();
    at_ += count;
    return pickle_.substr(at_ - count, count);
  }

  int64_t integer(size_t bytes) {
    const std::string_view digits = take(bytes);
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(digits[i]);
    return static_cast<int64_t>(value);
  }

  std::string line() {
    const size_t end = pickle_.find('\n', at_);
    if (end == std::string_view::npos) refuse();
    std::string text(take(end - at_));
    take(1);
    return text;
  }

  void global() {
    std::string name = line();
    name += "." + line();
    if (name.starts_with("__torch__.torch.classes.")) {
      throw Refused("it has objects of torch.classes");
    }
    push({.kind = Value::name, .characters = std::move(name)});
  }

  void storage(const Value& described) {
    const auto& parts = described.elements;
    if (parts.size() != 5 || parts[0]->characters != "storage" || parts[1]->kind != Value::name ||
        parts[2]->kind != Value::text || parts[4]->kind != Value::number) {
      refuse();
    }
    const uint64_t size = size_of(parts[1]->characters);
    const int64_t count = parts[4]->integer;
    if (count < 0 || count > INT64_MAX / 16) refuse();
    storages_.push_back({parts[2]->characters, static_cast<uint64_t>(count) * size});
  }

  void push(Value value) { stack_.push_back(std::make_shared<Value>(std::move(value))); }

  static int depth_of(const std::vector<Pointer>& values) {
    int depth = 0;
    for (const Pointer& value : values) depth = std::max(depth, value->depth);
    if (depth >= kDeepest) throw Refused("it has values that are nested too deeply");
    return depth + 1;
  }

  void push_tuple(std::vector<Pointer> values) {
    const int depth = depth_of(values);
    push({.kind = Value::tuple, .elements = std::move(values), .depth = depth});
  }

  void put_into(const std::vector<Pointer>& values) {
    if (stack_.empty()) refuse();
    stack_.back()->depth = std::max(stack_.back()->depth, depth_of(values));
  }

  void made_of(const std::vector<Pointer>& values) { push({.depth = depth_of(values)}); }

  std::vector<Pointer> pop(size_t count) {
    if (count > stack_.size() - (marks_.empty() ? 0 : marks_.back())) refuse();
    std::vector<Pointer> values(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return values;
  }

  std::vector<Pointer> pop_to_mark() {
    if (marks_.empty()) refuse();
    auto values = pop(stack_.size() - marks_.back());
    marks_.pop_back();
    return values;
  }

  void remember(int64_t place) {
    if (stack_.empty()) refuse();
    memo_[place] = stack_.back();
  }

  void recall(int64_t place) {
    const auto found = memo_.find(place);
    if (found == memo_.end()) refuse();
    stack_.push_back(found->second);
  }

  std::string_view pickle_;
  size_t at_ = 0;
  std::vector<Pointer> stack_;
  std::vector<size_t> marks_;
  std::map<int64_t, Pointer> memo_;
  std::vector<Storage> storages_;
};

}  // namespace

std::vector<Storage> storages(std::string_view pickle) { return Reader(pickle).storages(); }

}  // namespace pyinv::torchscript
