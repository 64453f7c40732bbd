// Read rules from a parsed JSON document.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "json.h"
#include "pyinv/rules.h"

namespace pyinv {

// A draw's counter has 12 bits for the attempt and 32 for the step within it.
constexpr int64_t kMaxRestarts = (int64_t{1} << 12) - 1;
constexpr int64_t kMaxSteps = (int64_t{1} << 32) - 1;

// Throws json::Error if the rule has other members than these and its kind.
void only(const json::Node& rule, std::initializer_list<std::string_view> settings);

// Throws json::Error if the rule's `low` and `high`, -1 and 1 by default, are not finite and
// ordered in float32.
std::pair<float, float> read_interval(const json::Node& rule);

// Throws RuleError and json::Error.
Prior read_prior(const json::Node& rule);

}  // namespace pyinv
