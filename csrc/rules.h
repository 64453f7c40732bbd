// Read rules from a parsed JSON document.
#pragma once

#include <cstdint>

#include "json.h"
#include "pyinv/rules.h"

namespace pyinv {

// A draw's counter has 12 bits for the attempt and 32 for the step within it.
constexpr int64_t kMaxRestarts = (int64_t{1} << 12) - 1;
constexpr int64_t kMaxSteps = (int64_t{1} << 32) - 1;

// Throws RuleError and json::Error.
Prior read_prior(const json::Node& rule);

}  // namespace pyinv
