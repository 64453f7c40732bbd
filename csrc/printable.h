// Text from files, in error messages: terminals show them, and obey control characters.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "pyinv/api.h"

namespace pyinv {

// The length of the UTF-8 sequence at the start of `text`, which is not empty; 0 if it is invalid
// (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).
size_t utf8_length(std::string_view text);

// The same, and 0 for control characters too: C0, DEL and C1.
size_t printable_length(std::string_view text);

bool is_printable(std::string_view text);

// The text with escapes for what is not printable, and at most about `most` bytes of it.
PYINV_API std::string printable(std::string_view text, size_t most = 200);

}  // namespace pyinv
