#include "printable.h"

#include <algorithm>
#include <cstdint>

namespace pyinv {

size_t utf8_length(std::string_view text) {
  const auto byte = [&text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  size_t length = 0;
  uint8_t low = 0x80, high = 0xBF;  // bounds of the second byte
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  }
  if (!length || text.size() < length || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  }
  return length;
}

size_t printable_length(std::string_view text) {
  const size_t length = utf8_length(text);
  const auto last = static_cast<uint8_t>(text[std::max<size_t>(length, 1) - 1]);
  const bool control = length == 1   ? last < ' ' || last == 0x7F
                       : length == 2 ? text[0] == '\xC2' && last < 0xA0
                                     : false;
  return control ? 0 : length;
}

bool is_printable(std::string_view text) {
  while (!text.empty()) {
    const size_t length = printable_length(text);
    if (!length) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string printable(std::string_view text, size_t most) {
  constexpr char digits[] = "0123456789abcdef";
  std::string shown;
  while (!text.empty() && shown.size() < most) {
    size_t length = printable_length(text);
    if (length) {
      shown += text.substr(0, length);
    } else {
      length = utf8_length(text);
      shown += length ? "\\u00" : "\\x";
      length = std::max<size_t>(length, 1);
      const auto code = static_cast<uint8_t>(text[length - 1]);
      shown += {digits[code >> 4], digits[code & 15]};
    }
    text.remove_prefix(length);
  }
  return shown + (text.empty() ? "" : "...");
}

}  // namespace pyinv
