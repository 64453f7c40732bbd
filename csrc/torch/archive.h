// A TorchScript file that somebody else may have written: what is checked before and after torch
// loads it. docs/security.md says what this keeps out.
#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <string>

namespace pyinv::torchscript {

// Loads a module of which nothing runs before it has been checked. Throws Refused if the file names
// operators that allows() does not list, runs code of its own while it is read, or has tensors that
// reach beyond their memory.
torch::jit::Module load_module(const std::string& file, c10::Device device);

// Throws Refused if a graph, with what it calls, has an operator that is not listed or a
// constant that reaches beyond its memory.
void check_graph(torch::jit::Graph& graph);

}  // namespace pyinv::torchscript
