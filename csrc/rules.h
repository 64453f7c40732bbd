// Read rules from a parsed JSON document.
#pragma once

#include "json.h"
#include "pyinv/rules.h"

namespace pyinv {

// Throws RuleError and json::Error.
Prior read_prior(const json::Node& rule);

}  // namespace pyinv
