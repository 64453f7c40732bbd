// Rules out of a JSON document that is already read.
#pragma once

#include "json.h"
#include "pyinv/rules.h"

namespace pyinv {

// Throws RuleError and json::Error.
Prior read_prior(const json::Node& rule);

}  // namespace pyinv
