// The emulated machine, as a test sets it up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

// When a stream's work is done.
enum class Pace {
  late,    // not before the host or another stream waits for it
  early,   // at once
  random,  // some of it, whenever the runtime is called
};
void set_pace(Pace pace, uint32_t seed = 0);

struct Machine {
  int driver = 13000;  // 0: none
  int gpus = 2;
  size_t memory = size_t{1} << 30;  // of each GPU, and as much pinned
  int shared_memory = 99 << 10;     // of a block, for kernels that ask for it
  bool runs_kernels = true;         // false: built for other GPUs
};
Machine& machine();

// What was made and not destroyed.
int64_t living_objects();

int64_t graph_launches();

}  // namespace emulator
